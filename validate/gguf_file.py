"""A GGUF artifact, whole or split: its tensors as rows, and new files made of such tensors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan import gguf
from sampan.errors import wrong
from sampan.quantize.ggml import decode_rows
from sampan.quantize.types import NumberType, number_type, number_type_by_id

STEP = 1 << 20  # values decoded at once
PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor: `offset` counts from the start of its file."""

    name: str
    shape: tuple[int, ...]
    type: NumberType
    path: Path
    offset: int

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.rows * self.type.row_bytes(self.columns)


@dataclass(frozen=True, slots=True)
class GGUF:
    """Metadata of the first part and the tensors of all parts, by name."""

    path: Path
    metadata: dict[str, gguf.Value]
    tensors: dict[str, Stored]
    nbytes: int

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value."""
        found = self.metadata.get(key)
        return default if found is None else found.value

    @property
    def bits_per_weight(self) -> float:
        values = sum(math.prod(t.shape) for t in self.tensors.values())
        return 8 * sum(t.nbytes for t in self.tensors.values()) / values

    @property
    def nominal_bits(self) -> float:
        """Bits of the number type that holds most of the values: 4.5 for q4_k_m, whatever its embedding has."""
        values: dict[float, int] = {}
        for t in self.tensors.values():
            values[t.type.bits] = values.get(t.type.bits, 0) + math.prod(t.shape)
        return max(values, key=lambda bits: values[bits])

    @property
    def types(self) -> set[str]:
        """The number types of its matrices."""
        return {t.type.name for t in self.tensors.values() if len(t.shape) > 1}


def open_gguf(path: Path) -> GGUF:
    """Read the headers; every tensor's bytes are checked to lie inside its file."""
    if not path.is_file():
        raise wrong(path, "a GGUF file", "no such file")
    paths = [path]
    if match := PART.fullmatch(path.name):
        count = int(match[2])
        paths = [path.with_name(f"{match[1]}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    metadata: dict[str, gguf.Value] = {}
    tensors: dict[str, Stored] = {}
    for part in paths:
        header = gguf.read_header(part)
        metadata = metadata or header.metadata
        size = part.stat().st_size
        for t in header.tensors:
            kind = number_type_by_id(t.type_id)
            where = f"{part}: {t.name}"
            if kind is None:
                raise wrong(where, "a number type that the gguf package knows", f"number {t.type_id}")
            if t.name in tensors:
                raise wrong(where, "each tensor once", "it in two parts")
            if not t.shape or t.shape[-1] % kind.block:
                raise wrong(where, f"rows of a multiple of {kind.block} values", f"shape {list(t.shape)}")
            stored = Stored(t.name, t.shape, kind, part, header.data_start + t.offset)
            if stored.offset + stored.nbytes > size:
                raise wrong(where, f"{stored.nbytes} bytes from {stored.offset}", f"a file of {size} bytes")
            tensors[t.name] = stored
    if not tensors:
        raise wrong(path, "tensors", "none")
    return GGUF(path, metadata, tensors, sum(p.stat().st_size for p in paths))


def read_rows(t: Stored, fd: int, start: int, rows: int) -> NDArray[np.float32]:
    """Rows of a tensor, decoded, float32 [rows, columns]; `fd` is its open file."""
    out = np.empty((rows, t.columns), np.float32)
    decode_rows(t.type, read_raw(t, fd, start, rows), out)
    return out


def read_raw(t: Stored, fd: int, start: int, rows: int) -> NDArray[np.uint8]:
    """The stored bytes of some rows."""
    step = t.type.row_bytes(t.columns)
    raw = os.pread(fd, rows * step, t.offset + start * step)
    if len(raw) != rows * step:
        raise wrong(t.path, f"{rows * step} bytes of {t.name}", f"{len(raw)} bytes", "the file changed")
    return np.frombuffer(raw, np.uint8)


def chunks(t: Stored) -> Iterator[tuple[int, int]]:
    """(first row, rows) of pieces of a tensor that stay small when decoded."""
    step = max(1, STEP // t.columns)
    for start in range(0, t.rows, step):
        yield start, min(step, t.rows - start)


def compose(
    out: Path, metadata: dict[str, gguf.Value], tensors: Sequence[Stored], as_f32: Callable[[Stored], bool]
) -> Path:
    """Write one GGUF file of tensors that other files hold: decoded to float32 where `as_f32`, else as they are."""
    single = {k: v for k, v in metadata.items() if not k.startswith("split.")}
    f32, infos, offset = number_type("f32"), [], 0
    for t in tensors:
        kind = f32 if as_f32(t) else t.type
        infos.append(gguf.Tensor(t.name, t.shape, kind.id, offset))
        offset += gguf.padded(t.rows * kind.row_bytes(t.columns))
    part = out.with_name(out.name + ".part")
    with part.open("wb") as f:
        f.write(gguf.encode(single, infos))
        base = f.tell()
        for t, info in zip(tensors, infos, strict=True):
            f.seek(base + info.offset)
            with t.path.open("rb") as source:
                for start, rows in chunks(t):
                    read = read_rows if as_f32(t) else read_raw
                    f.write(read(t, source.fileno(), start, rows).data)
        f.truncate(base + offset)
    part.replace(out)
    return out


def dequantise(source: GGUF, out: Path) -> Path:
    """The same model with every tensor decoded to float32."""
    return compose(out, source.metadata, list(source.tensors.values()), lambda t: True)
