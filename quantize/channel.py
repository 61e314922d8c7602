"""Integers with a scale for each row, as NPU compilers read weights: DequantizeLinear over an axis.

value = scale · (code - zero point). `w8`: int8. `w16`: uint16 around 32768. `w4_32`: int4 in blocks of 32, whose scale
is a whole number from 1 to 15 times the row's (Qualcomm's low-power block quantisation). Its codes and whole numbers
lie turned: [columns, rows] and [blocks, rows].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BLOCK, LARGEST = 32, 15  # values that share a whole number, and its most
TRIED = (1, 0, -1, -2)  # steps from the whole number that holds a block's largest value
SMALLEST = np.float32(1e-12)  # a row of zeros has a scale too
AT_ONCE = 1 << 17  # values that a search holds


@dataclass(frozen=True, slots=True)
class ChannelType:
    """`width`: bits of a code; `block`: values that share a scale inside of a row, 1 where the row has one."""

    name: str
    width: int
    block: int

    @property
    def turned(self) -> bool:
        """Whether its arrays lie [columns, rows]."""
        return self.block > 1

    def lines(self, columns: int) -> tuple[int, ...]:
        """Lines of each array of a turned type; a line holds a value of every row."""
        return columns, columns // BLOCK, 1

    def part_bytes(self, columns: int) -> tuple[int, ...]:
        """Bytes of a row in each array: codes, whole numbers of blocks, scale."""
        blocks = (columns // BLOCK,) if self.turned else ()
        return columns * self.width // 8, *blocks, 4

    def row_bytes(self, columns: int) -> int:
        return sum(self.part_bytes(columns))

    @property
    def bits(self) -> float:
        """Bits per value, with the whole numbers and without the row's scale."""
        return self.width + (8 / BLOCK if self.turned else 0)

    @property
    def weighted(self) -> bool:
        """Whether `encode` makes anything of column weights."""
        return self.turned

    def encode(self, rows: Floats, out: Bytes, weights: Floats | None) -> None:
        """As `codec.encode_rows`. Raises InputError where rows of `w4_32` are no whole blocks or an odd number."""
        largest = np.abs(rows).max(axis=1)
        if self.turned:
            _put(out, *_blocks(rows, largest, weights))
            return
        top = (1 << (self.width - 1)) - 1
        scale = np.maximum(largest / np.float32(top), SMALLEST)
        codes = np.clip(np.rint(rows / scale[:, None]), -top, top)
        _put(out, codes.astype(np.int8) if self.width == 8 else (codes + 32768).astype(np.uint16), scale)

    def decode(self, data: Bytes, out: Floats) -> None:
        """As `codec.decode_rows`."""
        n, k = out.shape
        sizes = np.cumsum([n * b for b in self.part_bytes(k)])
        parts = np.split(data[: sizes[-1]], sizes[:-1])
        scale = parts[-1].view(np.float32)[:, None]
        if self.turned:
            pairs = parts[0].reshape(k, n // 2)
            codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(k, n).astype(np.int8)
            codes -= (codes > 7) * np.int8(16)
            whole = np.repeat(parts[1].reshape(k // BLOCK, n), BLOCK, axis=0)
            out[:] = (codes * whole.astype(np.float32)).T * scale
        elif self.width == 8:
            out[:] = parts[0].view(np.int8).reshape(n, k) * scale
        else:
            out[:] = (parts[0].view(np.uint16).reshape(n, k).astype(np.float32) - 32768) * scale

    def pack(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.float32],
        zeros: NDArray[np.uint8] | None,
        out: NDArray[np.uint8],
    ) -> None:
        """As `codec.pack_integers`: no stored integers fit, since their scales are no whole numbers of one."""
        raise AssertionError(f"integers cannot be packed into {self.name}")


CHANNEL_TYPES = {
    t.name: t for t in (ChannelType("w8", 8, 1), ChannelType("w16", 16, 1), ChannelType("w4_32", 4, BLOCK))
}


def _put(out: Bytes, *arrays: NDArray[np.generic]) -> None:
    at = 0
    for array in arrays:
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        out[at : at + raw.size] = raw
        at += raw.size
    if at != out.size:
        raise AssertionError(f"{at} bytes for {out.size}")


def _blocks(rows: Floats, largest: Floats, weights: Floats | None) -> tuple[Bytes, Bytes, Floats]:
    """Codes [k, n / 2], two rows in a byte; whole numbers [blocks, n]; scales [n].

    Of the whole numbers near the one that holds a block's largest value the one with the least squared error counts.
    """
    n, k = rows.shape
    if k % BLOCK or n % 2:
        raise InputError(f"its {n} rows of {k} values do not fit w4_32 (pairs of rows, blocks of {BLOCK})")
    scale = np.maximum(largest / np.float32(7 * LARGEST), SMALLEST)
    blocks = rows.reshape(n, k // BLOCK, BLOCK)
    codes, whole = np.empty(blocks.shape, np.int8), np.empty(blocks.shape[:2], np.uint8)
    by_column = None if weights is None else weights.reshape(k // BLOCK, BLOCK)
    step = max(1, AT_ONCE // k)
    for at in (slice(start, start + step) for start in range(0, n, step)):
        codes[at], whole[at] = _search(blocks[at] / scale[at, None, None], by_column)
    nibbles = codes.reshape(n, k).T.view(np.uint8) & 15
    packed: Bytes = np.bitwise_or(nibbles[:, ::2], nibbles[:, 1::2] << 4, dtype=np.uint8)
    return packed, whole.T, scale


def _search(x: Floats, weights: Floats | None) -> tuple[NDArray[np.int8], Bytes]:
    """Codes and whole numbers of x [rows, blocks, 32], in units of the rows' scales; `weights` of [blocks, 32]."""
    first = np.rint(np.abs(x).max(axis=2) / 7)
    best = np.full(first.shape, np.inf, np.float32)
    codes, whole = np.zeros(x.shape, np.float32), np.ones(first.shape, np.float32)
    for step in TRIED:
        n = np.clip(first + step, 1, LARGEST).astype(np.float32)
        q = np.clip(np.rint(x / n[:, :, None]), -8, 7)
        squares = np.square(x - q * n[:, :, None])
        error = (squares if weights is None else squares * weights).sum(axis=2)
        better = error < best
        best[better], whole[better] = error[better], n[better]
        codes[better] = q[better]
    return codes.astype(np.int8), whole.astype(np.uint8)
