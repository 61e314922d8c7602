"""A protobuf file of a stranger, looked through before it is parsed: what it would cost, and its large blobs left out.

Wire format: https://protobuf.dev/programming-guides/encoding/. Two bytes can stand for a message of a hundred.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .errors import InputError, wrong
from .files import size_of
from .units import human

MEMORY = 600_000_000  # bytes that the parsed file may take by this estimate
PART, ITEM = 200, 24  # bytes of a message and of any other field in memory, at most
MAX_FIELDS = 1_500_000  # ten for a node, so 150,000 nodes
DEPTH = 60  # of messages in messages; protobuf itself ends at 100
BLOB = 4096  # bytes from which raw data is left out
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Fields:
    """By field number: messages inside, texts, whole numbers that one byte can stand for, and raw data."""

    inside: dict[int, str]
    texts: frozenset[int]
    varints: frozenset[int]
    raw: int


def read_message(path: Path, message: Any) -> None:
    """Parse a file into an empty message of the onnx package; raw data from `BLOB` bytes on comes out empty."""
    from google.protobuf.message import DecodeError

    size = size_of(path)
    if size == 0:
        raise wrong(path, "an ONNX graph", "an empty file")
    scan = _Scan(path, _schema(type(message).DESCRIPTOR))
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as scan.data:
            rest = scan.message(type(message).DESCRIPTOR.full_name, 0, size, 0)
            raw = scan.data[:] if rest is None else rest
        message.ParseFromString(raw)
    except (DecodeError, IndexError, UnicodeDecodeError):
        raise wrong(path, "an ONNX graph", "bytes that protobuf cannot read") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from None


@cache
def _schema(descriptor: Any) -> dict[str, _Fields]:
    """The message types that can be reached from one, by name."""
    found: dict[str, _Fields] = {}
    todo = [descriptor]
    while todo:
        at = todo.pop()
        if at.full_name in found:
            continue
        inside = [f for f in at.fields if f.message_type is not None]
        varints = [f.number for f in at.fields if f.cpp_type in (f.CPPTYPE_INT32, f.CPPTYPE_INT64, f.CPPTYPE_UINT64)]
        raw = at.fields_by_name.get("raw_data")
        found[at.full_name] = _Fields(
            {f.number: f.message_type.full_name for f in inside},
            frozenset(f.number for f in at.fields if f.type == f.TYPE_STRING),
            frozenset(varints),
            raw.number if raw else 0,
        )
        todo += [f.message_type for f in inside]
    return found


class _Scan:
    """One pass over the wire format that adds up what the fields cost; an IndexError where it runs past the end."""

    def __init__(self, path: Path, schema: dict[str, _Fields]) -> None:
        self.path, self.schema = path, schema
        self.data: Any = b""
        self.fields = self.cost = 0

    def message(self, name: str, at: int, end: int, depth: int) -> bytes | None:
        """The bytes of one message without its large raw data; None where it has none."""
        if depth > DEPTH:
            raise InputError(f"{self.path}: its messages are nested deeper than {DEPTH} levels; is it damaged?")
        data, known, out, kept, begin = self.data, self.schema[name], bytearray(), at, at
        inside, texts, varints, raw = known.inside, known.texts, known.varints, known.raw
        fields, cost = self.fields, self.cost + PART  # local names: this loop is where the time goes
        while at < end:
            start = at
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = self._varint(start, end)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise IndexError
            fields += 1
            cost += ITEM
            if cost > MEMORY or fields > MAX_FIELDS:
                raise self._too_large()
            if wire == BYTES:
                length = data[at]
                at += 1
                if length > 127:
                    length, at = self._varint(at - 1, end)
                if at + length > end:
                    raise IndexError
                if number in inside:
                    self.fields, self.cost = fields, cost
                    part = self.message(inside[number], at, at + length, depth + 1)
                    fields, cost = self.fields, self.cost
                    if part is not None:
                        out += data[kept:start] + _encoded(tag) + _encoded(len(part)) + part
                        kept = at + length
                elif number == raw and length >= BLOB:
                    out += data[kept:start]
                    kept = at + length
                elif length:
                    if number in texts:
                        data[at : at + length].decode("utf-8")  # protobuf says so only when a text is used
                    cost += length * (24 if number in varints else 2)
                at += length
            elif wire == VARINT:
                _, at = self._varint(at, end)
            elif wire == FIXED64:
                at += 8
            elif wire == FIXED32:
                at += 4
            else:  # groups, which ONNX does not use, or damage
                raise IndexError
        self.fields, self.cost = fields, cost
        if cost > MEMORY:
            raise self._too_large()
        if at != end:
            raise IndexError
        return None if kept == begin else bytes(out) + data[kept:end]

    def _too_large(self) -> InputError:
        return InputError(
            f"{self.path}: this graph would take more than {human(MEMORY)} of memory or has more than "
            f"{MAX_FIELDS} fields; is it the right file?"
        )

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end:
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
            if shift > 63:
                break
        raise IndexError


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
