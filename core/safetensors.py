"""Safetensors headers, read without trusting them.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, that
many bytes of JSON `{name: {dtype, shape, data_offsets: [start, end]}}`, then the data. The rules that
the reference reader enforces are enforced here too: offsets within the file, no overlap, no holes,
sizes that match dtype and shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .errors import brief, wrong
from .files import parse_json

MAX_DIMS = 64  # numpy's own limit
MAX_HEADER = 100_000_000  # bytes; the reference reader's own limit
ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

ReadAt = Callable[[int, int], bytes]
"""(offset, length) → at most `length` bytes; fewer only at the end of the file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor: `shape` as written (row-major), `offset` in bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(read: ReadAt, file_size: int, where: str) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file of `file_size` bytes, by name; `where` names it in errors."""
    return read_whole_header(read, file_size, where)[0]


def read_whole_header(read: ReadAt, file_size: int, where: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The same, and the texts that the writer put beside the tensors; what is no text there is left out."""
    if file_size < 8:
        raise wrong(where, "a safetensors file of at least 8 bytes", f"{file_size} bytes; is it truncated?")
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER or length > file_size - 8:
        limit = min(MAX_HEADER, file_size - 8)
        raise wrong(where, f"a header length of at most {limit} bytes", length, "truncated or not safetensors")
    header = _parse(read(8, length), length, where)
    said = header.pop("__metadata__", None)
    texts = {k: v for k, v in said.items() if isinstance(v, str)} if isinstance(said, dict) else {}
    start, infos = 8 + length, []
    for name, entry in header.items():
        infos.append(_tensor(name, entry, start, where))
    _check_layout(infos, start, file_size, where)
    return {info.name: info for info in infos}, texts


def encode_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]], texts: Mapping[str, str]) -> bytes:
    """The bytes in front of the data of tensors (name, dtype, shape) that follow one another."""
    header: dict[str, object] = {"__metadata__": dict(texts)}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _parse(raw: bytes, length: int, where: str) -> dict[str, object]:
    if len(raw) != length:
        raise wrong(where, f"a header of {length} bytes", f"{len(raw)} bytes", "the file is truncated")

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result: dict[str, object] = {}
        for name, value in pairs:
            if name in result:
                raise wrong(where, "each name once in the header", f"{brief(name)} twice")
            result[name] = value
        return result

    header = parse_json(raw, f"{where}: header", once)
    if not isinstance(header, dict):
        raise wrong(where, "a JSON object as header", type(header).__name__)
    return header


def _tensor(name: str, entry: object, start: int, where: str) -> TensorInfo:
    at = f"{where}: {brief(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise wrong(at, "dtype, shape and data_offsets", brief(entry))
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise wrong(at, f"a dtype among {', '.join(ITEMSIZE)}", brief(dtype))
    if not _naturals(shape):
        raise wrong(at, "a shape of whole numbers", brief(shape))
    if len(shape) > MAX_DIMS:
        raise wrong(at, f"at most {MAX_DIMS} dimensions", len(shape))
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(at, "data_offsets [start, end] with start ≤ end", brief(offsets))
    nbytes = math.prod(shape) * ITEMSIZE[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise wrong(at, f"{nbytes} bytes for {dtype} {brief(shape)}", f"{offsets[1] - offsets[0]} in data_offsets")
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], nbytes)


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_layout(infos: list[TensorInfo], start: int, file_size: int, where: str) -> None:
    """Tensors follow one another from `start` to the end of the file without gap or overlap."""
    end = start
    for info in sorted(infos, key=lambda i: (i.offset, i.nbytes)):
        if info.offset != end:
            fault = "overlaps the tensor before it" if info.offset < end else "leaves a hole before it"
            raise wrong(f"{where}: {brief(info.name)}", f"data at byte {end}", f"{info.offset}: it {fault}")
        end += info.nbytes
    if end != file_size:
        fault = "the file is truncated" if end > file_size else "bytes that belong to no tensor"
        raise wrong(where, f"{end} bytes as its header says", f"{file_size}", fault)
