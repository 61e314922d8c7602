"""Plain numbers: bfloat16, float16 and float32 tensors, row after row, or matrices that are read transposed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sampan.errors import wrong
from sampan.quantize.ggml import decode_rows
from sampan.quantize.types import number_type
from sampan.safetensors import ITEMSIZE

from ..encoding import Buffer, Encoding, Read, StoredTensor


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    row = stored.columns * ITEMSIZE[stored.main.info.dtype]
    return (Read(0, start * row, rows * row),)


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    decode_rows(number_type(stored.main.info.dtype.lower()), buffers[0], out)


def turned(stored: StoredTensor, where: str) -> StoredTensor:
    """The same tensor with each of its matrices transposed: its rows are the columns that are stored."""
    if stored.encoding is not ENCODING or len(stored.shape) < 2:
        raise wrong(where, "matrices of plain numbers, which are read transposed", stored.label)
    *lead, rows, columns = stored.shape
    return replace(stored, shape=(*lead, columns, rows), encoding=TURNED)


def _runs(stored: StoredTensor, start: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """(matrix, first row in it, rows) of some rows of matrices that stand one after the other."""
    height = stored.shape[-2]
    while rows > 0:
        matrix, first = divmod(start, height)
        count = min(rows, height - first)
        yield matrix, first, count
        start, rows = start + count, rows - count


def _reads_turned(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    height, columns = stored.shape[-2:]
    item = ITEMSIZE[stored.main.info.dtype]
    return tuple(
        Read(0, (matrix * height * columns + first) * item, count * item, columns, height * item)
        for matrix, first, count in _runs(stored, start, rows)
    )


def _decode_turned(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    kind, columns, at = number_type(stored.main.info.dtype.lower()), stored.columns, 0
    for (_, _, count), buffer in zip(_runs(stored, start, len(out)), buffers, strict=True):
        part, at = out[at : at + count], at + count
        if kind.name == "f32":
            part[:] = buffer.view(np.float32).reshape(columns, count).T
        else:
            raw = np.ascontiguousarray(buffer.view(np.uint16).reshape(columns, count).T)
            decode_rows(kind, raw.view(np.uint8).reshape(-1), part)


ENCODING = Encoding(name="plain", dtypes=("BF16", "F16", "F32"), reads=_reads, decode=_decode)
TURNED = replace(ENCODING, reads=_reads_turned, decode=_decode_turned)
