"""Statistics of the inputs of a model's matrices: sums of squares of every column over a calibration text.

Two files hold them: safetensors, and llama.cpp's imatrix GGUF (tools/imatrix/imatrix.cpp). Both have, for a matrix
called NAME in a GGUF file, float32 tensors `NAME.in_sum2` [counts, …] and `NAME.counts`: one count for a matrix, one
for each of stacked experts. Columns stand as in a GGUF file. Files come from strangers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sampan import gguf, safetensors
from sampan.artifact import write_atomically
from sampan.errors import brief, wrong
from sampan.files import size_of

from .types import number_type

SUMS, COUNTS = ".in_sum2", ".counts"  # of llama.cpp
TYPE, IMATRIX = "general.type", "imatrix"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
ABOUT = "sampan."  # our own texts: source, source_sha256 or file_sha256, text, text_sha256, tokens
PIECE = 1 << 20  # values that are looked at together
SMALLEST = 1e-12  # of the mean: a block that is never used in the text must keep its values all the same
LARGEST = 1e30  # of a sum: what is multiplied with squares of weights must stay a number
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Entry:
    """`values` sums of squares lie at `offset`; `counts`: over how many vectors, for each equal part of them."""

    offset: int
    values: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """An open file of statistics, every number in it looked at. `about`: what its writer says of it."""

    path: Path
    sha256: str
    entries: Mapping[str, Entry]
    about: Mapping[str, str]
    file: BinaryIO = field(repr=False)

    def inputs(self, name: str, matrix: int, matrices: int, order: NDArray[np.intp] | None = None) -> Inputs:
        """Those of one of the `matrices` matrices of a tensor; `order` as in Inputs."""
        entry = self.entries[name]
        columns = entry.values // matrices
        count = entry.counts[matrix if len(entry.counts) > 1 else 0]
        return Inputs(self, entry.offset + 4 * matrix * columns, columns, count, order)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the inputs of one matrix were, read when it is wanted. `order`: which stored column each column is."""

    stats: Stats
    offset: int
    columns: int
    count: int
    order: NDArray[np.intp] | None = field(default=None, compare=False)

    def weights(self) -> Floats:
        """Mean square of every column, float32 [columns]; all one where nothing was seen, which is llama.cpp's rule."""
        if not self.count:
            return np.ones(self.columns, np.float32)
        raw = os.pread(self.stats.file.fileno(), 4 * self.columns, self.offset)
        if len(raw) != 4 * self.columns:
            raise wrong(self.stats.path, f"{4 * self.columns} bytes at {self.offset}", len(raw), "the file changed")
        mean: Floats = np.divide(np.frombuffer(raw, np.float32), np.float32(self.count), dtype=np.float32)
        floor = np.float32(SMALLEST * mean.mean(dtype=np.float64))
        mean = np.maximum(mean, floor, dtype=np.float32) if floor > 0 else np.ones_like(mean)
        return mean if self.order is None else mean[self.order]


def of_shards(sha256: Mapping[str, str]) -> str:
    """What `source_sha256` is: SHA-256 over those of a checkpoint's shards, by their names' order."""
    return hashlib.sha256("".join(sha256[name] for name in sorted(sha256)).encode()).hexdigest()


def open_stats(path: Path) -> Stats:
    """Open a safetensors or imatrix GGUF file and look at every number; refuses NaN, negative and missing ones."""
    size = size_of(path)
    file = path.open("rb")  # as long as somebody has the Stats
    fd = file.fileno()
    places, about = _from_gguf(path) if os.pread(fd, 4, 0) == gguf.MAGIC else _from_safetensors(path, fd, size)
    _refuse_amplification(path, places, size)
    names = sorted(n.removesuffix(SUMS) for n in places if n.endswith(SUMS))
    counted = {n.removesuffix(COUNTS) for n in places if n.endswith(COUNTS)}
    if not names:
        raise wrong(path, f"statistics, tensors called *{SUMS} and *{COUNTS}", "none")
    if odd := sorted(set(names) ^ counted):
        raise wrong(f"{path}: {brief(odd[0])}", f"{SUMS} and {COUNTS}", "one of them")
    entries = {n: _entry(path, fd, n, places[n + SUMS], places[n + COUNTS]) for n in names}
    return Stats(path, hashlib.file_digest(file, "sha256").hexdigest(), entries, about, file)


Place = tuple[int, int]
"""Offset in the file, number of float32 values."""


def _from_gguf(path: Path) -> tuple[dict[str, Place], dict[str, str]]:
    header = gguf.read_header(path)
    kind = header.metadata.get(TYPE)
    if kind is None or kind.value != IMATRIX:
        raise wrong(f"{path}: {TYPE}", IMATRIX, "none" if kind is None else brief(kind.value), "it is a model?")
    f32, places = number_type("f32").id, {}
    for t in header.tensors:
        if t.type_id != f32:
            raise wrong(f"{path}: {brief(t.name)}", "float32", f"number type {t.type_id}")
        places[t.name] = header.data_start + t.offset, int(np.prod(t.shape, dtype=object))
    about = {k.removeprefix(ABOUT): v.value for k, v in header.metadata.items() if k.startswith(ABOUT)}
    found = header.metadata.get(DATASETS)
    if found is not None and isinstance(found.value, list):
        about.setdefault("text", ", ".join(map(str, found.value)))
    return places, {k: v for k, v in about.items() if isinstance(v, str)}


def _from_safetensors(path: Path, fd: int, size: int) -> tuple[dict[str, Place], dict[str, str]]:
    infos, texts = safetensors.read_whole_header(lambda at, n: os.pread(fd, n, at), size, str(path))
    places = {}
    for info in infos.values():
        if info.dtype != "F32":
            raise wrong(f"{path}: {brief(info.name)}", "float32", info.dtype, "statistics come from sampan calibrate")
        places[info.name] = info.offset, info.nbytes // 4
    return places, {k.removeprefix(ABOUT): v for k, v in texts.items() if k.startswith(ABOUT)}


def _refuse_amplification(path: Path, places: Mapping[str, Place], size: int) -> None:
    """Tensors inside the file, together no larger than it: else the same bytes would be read again and again."""
    total = 0
    for name, (offset, values) in places.items():
        total += 4 * values
        if offset + 4 * values > size or total > size:
            raise wrong(f"{path}: {brief(name)}", f"{4 * values} bytes from {offset}", f"a file of {size} bytes")


def _entry(path: Path, fd: int, name: str, sums: Place, counts: Place) -> Entry:
    where = f"{path}: {brief(name)}"
    offset, values = sums
    if not values or not counts[1] or values % counts[1]:
        raise wrong(where, "an equal number of sums for every count", f"{values} sums for {counts[1]} counts")
    found = _floats(where + COUNTS, fd, *counts)
    if not (found == np.rint(found)).all():
        raise wrong(f"{where}{COUNTS}", "whole numbers", brief(float(found[found != np.rint(found)][0])))
    for at in range(0, values, PIECE):
        _floats(where + SUMS, fd, offset + 4 * at, min(PIECE, values - at))
    return Entry(offset, values, tuple(map(int, found)))


def _floats(where: str, fd: int, offset: int, values: int) -> Floats:
    """Finite float32 numbers from zero up."""
    found: Floats = np.frombuffer(os.pread(fd, 4 * values, offset), "<f4")
    if len(found) != values:
        raise wrong(where, f"{values} numbers", len(found), "the file changed")
    good = (found >= 0) & (found <= LARGEST)  # NaN is neither
    if not good.all():
        raise wrong(where, f"numbers from 0 to {LARGEST:g}", float(found[~good][0]))
    return found


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of squares, float [len(counts) · n], and over how many vectors each equal part of them is."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.values + other.values, self.counts + other.counts)


def write_stats(path: Path, found: Mapping[str, Sums], about: Mapping[str, str], chunk: int) -> None:
    """Write statistics, complete or not at all: `.gguf` as an imatrix of chunks of `chunk` tokens, else safetensors."""
    tensors: list[tuple[str, Floats]] = []
    for name, sums in sorted(found.items()):
        n = len(sums.counts)
        tensors.append((name + SUMS, sums.values.reshape(n, -1).astype("<f4")))
        tensors.append((name + COUNTS, sums.counts.reshape(n, 1).astype("<f4")))
    if path.suffix != ".gguf":
        header = safetensors.encode_header(
            [(n, "F32", v.shape) for n, v in tensors], {ABOUT + k: v for k, v in about.items()}
        )
        write_atomically(path, header + b"".join(v.tobytes() for _, v in tensors))
        return
    kind, text = gguf.Kind, gguf.Kind.STRING
    chunks = -(-int(about.get("tokens", "0")) // chunk)
    keys = {
        TYPE: gguf.Value(text, IMATRIX),
        DATASETS: gguf.Value(kind.ARRAY, [about.get("text", "")], text),
        CHUNK_COUNT: gguf.Value(kind.UINT32, chunks),
        CHUNK_SIZE: gguf.Value(kind.UINT32, chunk),
        **{ABOUT + k: gguf.Value(text, v) for k, v in about.items()},
    }
    infos, data = [], bytearray()
    for name, values in tensors:
        infos.append(gguf.Tensor(name, values.shape, number_type("f32").id, len(data)))
        data += values.tobytes()
        data += bytes(gguf.padded(len(data)) - len(data))
    write_atomically(path, gguf.encode(keys, infos) + data)
