"""The GGUF container: encode and decode its header (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

Little-endian: magic, version, tensor count, key count, keys, tensor infos, padding, data. Files come
from strangers: every length is checked against the bytes that are there before it is believed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, brief, wrong
from .files import size_of

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32  # bytes; general.alignment overrides it
MAX_DIMS = 4
# What a header may hold; the largest in the field are less than half: 0.8 million tokens and merges.
MAX_HEADER = 200_000_000  # bytes
MAX_VALUES = 8_000_000  # in all arrays together, where a string counts for four
MAX_TENSORS = 500_000


class Kind(IntEnum):
    """Value types of metadata, as numbered in the format's description."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_SCALAR = {
    Kind.UINT8: "B", Kind.INT8: "b", Kind.UINT16: "H", Kind.INT16: "h", Kind.UINT32: "I", Kind.INT32: "i",
    Kind.FLOAT32: "f", Kind.BOOL: "?", Kind.UINT64: "Q", Kind.INT64: "q", Kind.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value; `item` is the type of an array's elements."""

    kind: Kind
    value: Any
    item: Kind | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor info: `shape` in row-major order (GGUF stores it reversed), `offset` within the data."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """`data_start` is the file offset that tensor offsets count from."""

    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    data_start: int
    version: int = VERSION


def padded(n: int, alignment: int = ALIGNMENT) -> int:
    """`n` rounded up to the alignment."""
    return -(-n // alignment) * alignment


def encode(metadata: dict[str, Value], tensors: list[Tensor]) -> bytes:
    """The header of a GGUF file, padded to where the data starts."""
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + struct.pack("<I", value.kind)
        _encode_value(out, value)
    for t in tensors:
        out += _string(t.name) + struct.pack("<I", len(t.shape))
        out += struct.pack(f"<{len(t.shape)}Q", *reversed(t.shape)) + struct.pack("<IQ", t.type_id, t.offset)
    return bytes(out.ljust(padded(len(out)), b"\0"))


def _encode_value(out: bytearray, value: Value) -> None:
    if value.kind == Kind.STRING:
        out += _string(value.value)
    elif value.kind == Kind.ARRAY:
        assert value.item is not None  # noqa: S101 - an array without element type is a bug of the caller
        out += struct.pack("<IQ", value.item, len(value.value))
        if value.item == Kind.STRING:
            out += b"".join(map(_string, value.value))
        else:
            out += struct.pack(f"<{len(value.value)}{_SCALAR[value.item]}", *value.value)
    else:
        out += struct.pack("<" + _SCALAR[value.kind], value.value)


def _string(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(8, "little") + raw


def read_header(path: Path) -> Header:
    """The header of any GGUF file (version 2 or 3, little-endian)."""
    size = size_of(path)
    try:
        with path.open("rb") as f:
            return _Reader(f, path, size).header()
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from None


class _Reader:
    """Reads forward through a header and refuses to run past the end of the file."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.left = file, path, size
        self.allowed, self.values = MAX_HEADER, MAX_VALUES

    def header(self) -> Header:
        if (magic := self.file.read(4)) != MAGIC:
            raise wrong(self.path, "a GGUF file", f"the first bytes {magic!r}")
        self.left -= len(magic)
        version = self.scalar(Kind.UINT32)
        if version not in (2, 3):
            raise wrong(self.path, "GGUF version 2 or 3, little-endian", version)
        n_tensors, n_keys = self.scalar(Kind.UINT64), self.scalar(Kind.UINT64)
        self.bound(n_tensors, 8 + 4 + 4 + 8, "tensors")
        self.bound(n_keys, 8 + 4 + 1, "metadata keys")
        if n_tensors > MAX_TENSORS:
            raise wrong(self.path, f"at most {MAX_TENSORS} tensors", n_tensors)
        metadata: dict[str, Value] = {}
        for _ in range(n_keys):
            key = self.string("a metadata key")
            if key in metadata:
                raise wrong(f"{self.path}: {brief(key)}", "each metadata key once", "it twice")
            metadata[key] = self.value(self.kind(key), key)
        tensors: dict[str, Tensor] = {}
        for _ in range(n_tensors):
            tensor = self.tensor()
            if tensor.name in tensors:
                raise wrong(self.path, "each tensor name once", f"{brief(tensor.name)} twice")
            tensors[tensor.name] = tensor
        alignment = metadata.get("general.alignment", Value(Kind.UINT32, ALIGNMENT)).value
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise wrong(f"{self.path}: general.alignment", "a power of two", brief(alignment))
        return Header(metadata, tuple(tensors.values()), padded(self.file.tell(), alignment), version)

    def tensor(self) -> Tensor:
        name = self.string("a tensor name")
        dims = self.scalar(Kind.UINT32)
        if dims > MAX_DIMS:
            raise wrong(f"{self.path}: {brief(name)}", f"at most {MAX_DIMS} dimensions", dims)
        shape = tuple(self.scalar(Kind.UINT64) for _ in range(dims))[::-1]
        if math.prod(shape) >= 2**63:
            raise wrong(f"{self.path}: {brief(name)}", "fewer than 2⁶³ values", f"shape {shape}")
        return Tensor(name, shape, self.scalar(Kind.UINT32), self.scalar(Kind.UINT64))

    def take(self, n: int, what: str) -> bytes:
        if n > self.left:
            raise wrong(self.path, f"{n} bytes for {brief(what)}", f"{self.left} left in the file", "it is truncated")
        if n > self.allowed:
            raise InputError(f"{self.path}: its header is larger than {MAX_HEADER} bytes; is it damaged?")
        self.left -= n
        self.allowed -= n
        return self.file.read(n)

    def bound(self, count: int, at_least: int, what: str) -> None:
        if count * at_least > self.left:
            raise wrong(self.path, f"at most {self.left // at_least} {what} in the file", count)

    def count(self, n: int, each: int, what: str) -> None:
        if n * each > self.values:
            raise InputError(f"{self.path}: {brief(what)}: {n} values are more than a header may hold; is it damaged?")
        self.values -= n * each

    def scalar(self, kind: Kind) -> Any:
        code = "<" + _SCALAR[kind]
        return struct.unpack(code, self.take(struct.calcsize(code), "a number"))[0]

    def kind(self, key: str) -> Kind:
        number = self.scalar(Kind.UINT32)
        if number >= len(Kind):
            raise wrong(f"{self.path}: {brief(key)}", f"a value type below {len(Kind)}", number)
        return Kind(number)

    def string(self, what: str) -> str:
        return self.take(self.scalar(Kind.UINT64), what).decode(errors="replace")

    def value(self, kind: Kind, key: str) -> Value:
        if kind == Kind.STRING:
            return Value(kind, self.string(key))
        if kind != Kind.ARRAY:
            return Value(kind, self.scalar(kind))
        item, count = self.kind(key), self.scalar(Kind.UINT64)
        if item == Kind.ARRAY:
            raise wrong(f"{self.path}: {brief(key)}", "an array of plain values", "an array of arrays")
        if item == Kind.STRING:
            self.bound(count, 8, f"strings in {brief(key)}")
            self.count(count, 4, key)
            return Value(kind, [self.string(key) for _ in range(count)], item)
        size = struct.calcsize(_SCALAR[item])
        self.bound(count, size, f"values in {brief(key)}")
        self.count(count, 1, key)
        return Value(kind, list(struct.unpack(f"<{count}{_SCALAR[item]}", self.take(count * size, key))), item)
