"""Blocks of 4- and 8-bit values as ONNX Runtime's MatMulNBits, GatherBlockQuantized and QMoE read them.

Layout (ContribOperators.md of ONNX Runtime): a row of K values is ceil(K / block) blocks; an array of packed
values, low bits first, an array of scales, and, where there are any, an array of zero points packed alike.
value = scale · (packed - zero point), the zero point 2^(bits-1) where it is not stored. Scales are float16 here;
the graph casts them, which costs nothing after loading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError

from . import ggml
from .types import number_type

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# The largest value of a block falls on one of these steps (times the scale); the one with the least squared error
# wins. -8 and 7 are the ends of the range; the others were chosen one after the other for the most gain on normal,
# Student and Laplace values (docs/decisions.md).
STEPS = (-8.0, 7.0, -8.5, -8.8, -7.6, -8.2, 7.3, 6.1)
TINY = np.float32(1e-30)
AT_ONCE = 4096  # blocks that a search holds: they stay in the second-level cache
SHRINK = (1.0, 0.95, 0.9, 0.85)  # of the range that 16 steps with a zero point span


@dataclass(frozen=True, slots=True)
class BlockType:
    """`encode`: float32 [blocks, block] → values as uint8 of the same shape, scales float16 [blocks], zero points."""

    name: str
    width: int  # bits of a packed value
    block: int
    zero_points: bool
    encode: Callable[[Floats], tuple[Bytes, NDArray[np.float16], Bytes | None]]

    def blocks(self, columns: int) -> int:
        """Blocks of a row; the last one may be padded with zeros."""
        return -(-columns // self.block)

    def part_bytes(self, columns: int) -> tuple[int, ...]:
        """Bytes of a row in each array: values, scales, zero points."""
        n = self.blocks(columns)
        zero = (-(-n * self.width // 8),) if self.zero_points else ()
        return n * self.block * self.width // 8, 2 * n, *zero

    def row_bytes(self, columns: int) -> int:
        return sum(self.part_bytes(columns))

    @property
    def bits(self) -> float:
        """Bits per value, scales and zero points included."""
        return self.width + (16 + self.width * self.zero_points) / self.block


def encode_rows(kind: BlockType, rows: Floats, out: Bytes) -> None:
    """Encode float32 [n, k] into `out`: the n rows of each array, one array after the other.

    Raises InputError when a scale does not fit float16.
    """
    n, k = rows.shape
    blocks = kind.blocks(k)
    if k % kind.block:
        rows = np.pad(rows, ((0, 0), (0, blocks * kind.block - k)))
    q, scales, zeros = kind.encode(rows.reshape(-1, kind.block))
    if not np.isfinite(scales).all():
        raise InputError(f"its values do not fit {kind.name} (a scale overflows float16)")
    arrays = [_pack(q, kind.width), scales.view(np.uint8)]
    if zeros is not None:
        z = zeros.reshape(n, blocks)
        arrays.append(_pack(np.pad(z, ((0, 0), (0, blocks % 2))), kind.width))
    at = 0
    for array in arrays:
        out[at : at + array.size] = array.reshape(-1)
        at += array.size
    if at != out.size:
        raise AssertionError(f"{at} bytes of {kind.name} for {out.size}")


def decode_rows(kind: BlockType, data: Bytes, out: Floats) -> None:
    """Decode what `encode_rows` wrote into `out`, float32 [n, k]."""
    n, k = out.shape
    blocks = kind.blocks(k)
    sizes = [n * b for b in kind.part_bytes(k)]
    parts = np.split(data[: sum(sizes)], np.cumsum(sizes)[:-1])
    q = _unpack(parts[0], kind.width).reshape(n, blocks, kind.block).astype(np.float32)
    scales = parts[1].view(np.float16).astype(np.float32).reshape(n, blocks, 1)
    zero: Floats | np.float32 = np.float32(1 << (kind.width - 1))
    if kind.zero_points:
        zero = _unpack(parts[2], kind.width).reshape(n, -1)[:, :blocks, None].astype(np.float32)
    out[:] = ((q - zero) * scales).reshape(n, -1)[:, :k]


def _pack(q: Bytes, width: int) -> Bytes:
    if width == 8:
        return q.reshape(-1)
    pairs = q.reshape(-1, 2)
    packed: Bytes = np.bitwise_or(pairs[:, 0], pairs[:, 1] << 4, dtype=np.uint8)
    return packed


def _unpack(data: Bytes, width: int) -> Bytes:
    if width == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(-1)


def _symmetric(x: Floats) -> tuple[Bytes, NDArray[np.float16], None]:
    """4 bits around 8. For each step, the scale that fits its values best: Σxq / Σq², error Σx² - (Σxq)² / Σq²."""
    out, scales = np.empty(x.shape, np.uint8), np.empty(len(x), np.float16)
    for start in range(0, len(x), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        _search(np.ascontiguousarray(x[part].T), out[part], scales[part])
    return out, scales, None


def _search(x: Floats, out: Bytes, scales: NDArray[np.float16]) -> None:
    """The best of STEPS for float32 [block, blocks] (transposed: sums then run along whole vectors)."""
    high, low = x.max(axis=0), x.min(axis=0)
    inverse = _inverse(np.where(high > -low, high, low))
    q = np.empty_like(x)
    best_gain, best_scale = np.full(x.shape[1], -1.0, np.float32), np.zeros(x.shape[1], np.float32)
    for step in STEPS:
        np.rint(np.multiply(x, inverse * np.float32(step), out=q), out=q)
        if abs(step) > 7.4:
            np.minimum(q, 7, out=q)
        if abs(step) > 8.4:
            np.maximum(q, -8, out=q)
        xq, qq = np.einsum("ij,ij->j", x, q), np.einsum("ij,ij->j", q, q)
        scale = np.divide(xq, qq, out=np.zeros_like(xq), where=qq > 0)
        gain = xq * scale
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(best_scale, scale, where=better)
    with np.errstate(over="ignore"):
        scales[:] = best_scale
    np.rint(np.multiply(x, _inverse(scales.astype(np.float32)), out=q), out=q)
    np.clip(q, -8, 7, out=q)
    q += 8
    out[:] = q.T


def _inverse(scale: Floats) -> Floats:
    """1 / scale; zero where that would overflow."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > TINY)


def _asymmetric(x: Floats) -> tuple[Bytes, NDArray[np.float16], Bytes]:
    """4 bits with a zero point, over a range that holds zero; the best of some shrunk ranges."""
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    best = np.full(len(x), np.inf, np.float32)
    kept_scale, kept_zero = np.full(len(x), np.inf, np.float16), np.zeros(len(x), np.float32)
    for share in SHRINK:
        with np.errstate(over="ignore"):
            scales = ((high - low) * np.float32(share / 15)).astype(np.float16)
        s = scales.astype(np.float32)
        inverse = _inverse(s)
        zero = np.clip(np.rint(-low * np.float32(share) * inverse), 0, 15)
        q = np.clip(np.rint(x * inverse[:, None]) + zero[:, None], 0, 15)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.square((q - zero[:, None]) * s[:, None] - x).sum(axis=1)
        better = error < best
        best[better], kept_scale[better], kept_zero[better] = error[better], scales[better], zero[better]
    s = kept_scale.astype(np.float32)
    inverse = _inverse(s)
    q = np.clip(np.rint(x * inverse[:, None]) + kept_zero[:, None], 0, 15)
    return q.astype(np.uint8), kept_scale, kept_zero.astype(np.uint8)


def _ggml(name: str, x: Floats) -> tuple[Bytes, NDArray[np.float16], None]:
    """The numbers of ggml's q4_0 (element j in the low, j + 16 in the high nibble) or q8_0, in this layout."""
    kind = number_type(name)
    raw = np.empty((len(x), kind.block_bytes), np.uint8)
    ggml.encode_rows(kind, np.ascontiguousarray(x), raw.reshape(-1))
    scales = np.ascontiguousarray(raw[:, :2]).view(np.float16).reshape(-1)
    if name == "q8_0":
        return np.bitwise_xor(raw[:, 2:], 0x80, dtype=np.uint8), scales, None  # int8 → uint8 around 128
    return np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1), scales, None


BLOCK_TYPES = {
    t.name: t
    for t in (
        BlockType("u4_32", 4, 32, False, _symmetric),
        BlockType("u4_128", 4, 128, False, _symmetric),
        BlockType("u4_32z", 4, 32, True, _asymmetric),
        BlockType("u4_128z", 4, 128, True, _asymmetric),
        BlockType("q4_0", 4, 32, False, lambda x: _ggml("q4_0", x)),
        BlockType("q8_0", 8, 32, False, lambda x: _ggml("q8_0", x)),
    )
}
