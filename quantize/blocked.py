"""Blocks of 4- and 8-bit values as ONNX Runtime's MatMulNBits, GatherBlockQuantized and QMoE read them.

Layout (ContribOperators.md of ONNX Runtime): a row of K values is ceil(K / block) blocks; an array of packed
values, low bits first, an array of scales, and, where there are any, an array of zero points packed alike.
value = scale · (packed - zero point), the zero point 2^(bits-1) where it is not stored. Scales are float16 here;
the graph casts them, which costs nothing after loading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
# Student and Laplace values (benchmarks/blocks.py).
STEPS = (-8.0, 7.0, -8.5, -8.8, -7.6, -8.2, -7.3, -6.1)
TINY = np.float32(1e-30)
UNDER_HALF = np.nextafter(np.float32(0.5), np.float32(0))  # added before a cut it rounds, halves away from zero
AT_ONCE = 4096  # blocks that a search holds: they stay in the second-level cache
STRETCHES = (1.0, 1.08, 0.96, 1.18)  # of the range that 16 steps with a zero point span, chosen in the same way
# Where columns count differently it pays to cut the largest value off: further ones, chosen in the same way
WEIGHTED_STEPS = (*STEPS, -10.6, -9.7, 8.8)
WEIGHTED_STRETCHES = (*STRETCHES, 0.88, 0.8)


Search = Callable[[Floats, Floats | None], tuple[Bytes, NDArray[np.float16], Bytes | None]]
"""float32 [rows, blocks, block], column weights [blocks, block] or None → values as uint8 [rows · blocks, block],
scales [rows · blocks], zero points or None.
"""


@dataclass(frozen=True, slots=True)
class BlockType:
    """`weighted`: the search makes something of column weights."""

    name: str
    width: int  # bits of a packed value
    block: int
    zero_points: bool
    search: Search
    weighted: bool = True

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

    def encode(self, rows: Floats, out: Bytes, weights: Floats | None) -> None:
        """As `codec.encode_rows`: the n rows of each array, one array after the other.

        Raises InputError when a scale does not fit float16.
        """
        n, k = rows.shape
        blocks = self.blocks(k)
        if more := blocks * self.block - k:
            rows = np.pad(rows, ((0, 0), (0, more)))
            weights = None if weights is None else np.pad(weights, (0, more))
        by_block = None if weights is None else weights.reshape(blocks, self.block)
        q, scales, zeros = self.search(rows.reshape(n, blocks, self.block), by_block)
        pack_rows(self, q, scales, zeros, n, out)

    def decode(self, data: Bytes, out: Floats) -> None:
        """As `codec.decode_rows`."""
        n, k = out.shape
        blocks = self.blocks(k)
        sizes = [n * b for b in self.part_bytes(k)]
        parts = np.split(data[: sum(sizes)], np.cumsum(sizes)[:-1])
        q = _unpack(parts[0], self.width).reshape(n, blocks, self.block).astype(np.float32)
        scales = parts[1].view(np.float16).astype(np.float32).reshape(n, blocks, 1)
        zero: Floats | np.float32 = np.float32(1 << (self.width - 1))
        if self.zero_points:
            zero = _unpack(parts[2], self.width).reshape(n, -1)[:, :blocks, None].astype(np.float32)
        out[:] = ((q - zero) * scales).reshape(n, -1)[:, :k]

    def pack(self, codes: Bytes, scales: Floats, zeros: Bytes | None, out: Bytes) -> None:
        """As `codec.pack_integers`."""
        with np.errstate(over="ignore"):  # infinite ones are refused when they are packed
            half = scales.astype(np.float16).reshape(-1)
        if self.zero_points and zeros is None:
            zeros = np.full(scales.shape, 8, np.uint8)
        pack_rows(self, codes.reshape(-1, self.block), half, zeros, len(codes), out)


def pack_rows(kind: BlockType, q: Bytes, scales: NDArray[np.float16], zeros: Bytes | None, n: int, out: Bytes) -> None:
    """Values uint8, scales and zero points of n rows, block after block, → their arrays in `out`.

    Raises InputError when a scale does not fit float16.
    """
    blocks = scales.size // n
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


def _symmetric(x: Floats, weights: Floats | None) -> tuple[Bytes, NDArray[np.float16], None]:
    """4 bits around 8: the best of STEPS, or of WEIGHTED_STEPS."""
    x = x.reshape(-1, x.shape[-1])
    out, scales = np.empty(x.shape, np.uint8), np.empty(len(x), np.float16)
    for part in _parts(len(x)):
        t = np.ascontiguousarray(x[part].T)
        high, low = t.max(axis=0), t.min(axis=0)
        inverse = _inverse(np.where(high > -low, high, low))
        zero = np.float32(8)
        tried = [(inverse * np.float32(step), zero) for step in (STEPS if weights is None else WEIGHTED_STEPS)]
        scales[part] = _best(t, tried, _roots(weights, part))[0]
        out[part] = _final(t, scales[part], zero)
    return out, scales, None


def _asymmetric(x: Floats, weights: Floats | None) -> tuple[Bytes, NDArray[np.float16], Bytes]:
    """4 bits around a zero point of the block's own, over a range that holds zero: the best of STRETCHES."""
    x = x.reshape(-1, x.shape[-1])
    out, scales, zeros = np.empty(x.shape, np.uint8), np.empty(len(x), np.float16), np.empty(len(x), np.uint8)
    for part in _parts(len(x)):
        t = np.ascontiguousarray(x[part].T)
        low, high = np.minimum(t.min(axis=0), 0), np.maximum(t.max(axis=0), 0)
        inverse = _inverse((high - low) / np.float32(15))
        tried = inverse / np.array(STRETCHES if weights is None else WEIGHTED_STRETCHES, np.float32)[:, None]
        around = np.clip(np.rint(-low * tried), 0, 15)
        scales[part], best = _best(t, list(zip(tried, around, strict=True)), _roots(weights, part))
        zero = np.take_along_axis(around, best[None], axis=0)[0]
        out[part], zeros[part] = _final(t, scales[part], zero), zero
    return out, scales, zeros


def _roots(weights: Floats | None, part: slice) -> Floats | None:
    """√w of the values of some blocks, float32 [block, blocks]; `weights` [blocks of a row, block]."""
    if weights is None:
        return None
    at = np.arange(part.start, part.stop) % len(weights)
    roots: Floats = np.sqrt(weights / weights.mean(dtype=np.float64)).astype(np.float32)
    return np.ascontiguousarray(roots[at].T)


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, min(n, start + AT_ONCE)) for start in range(0, n, AT_ONCE))


def _best(
    x: Floats, tried: Sequence[tuple[Floats, Floats | np.float32]], roots: Floats | None
) -> tuple[NDArray[np.float16], NDArray[np.intp]]:
    """The scales with the least squared error, of float32 [block, blocks], and which of `tried` gives each.

    `tried`: inverse scales and zero points that values v = x · inverse are rounded with. Of each, the scale that fits
    the rounded values best counts: Σxv / Σv², whose error is Σx² - (Σxv)² / Σv². Transposed, sums run along vectors.
    `roots`: √w, where errors count by w: then x and v are multiplied with them in the sums. Few calls on large arrays:
    threads wait for each other between calls.
    """
    v = np.empty_like(x)
    y = x if roots is None else x * roots
    xv, vv = np.empty((2, len(tried), x.shape[1]), np.float32)
    for n, (inverse, zero) in enumerate(tried):
        _round(x, inverse, zero, v)
        if roots is not None:
            v *= roots
        np.einsum("ij,ij->j", y, v, out=xv[n])
        np.einsum("ij,ij->j", v, v, out=vv[n])
    scales = np.divide(xv, vv, out=np.zeros_like(xv), where=vv > 0)
    xv *= scales
    best = xv.argmax(axis=0)
    with np.errstate(over="ignore"):
        return np.take_along_axis(scales, best[None], axis=0)[0].astype(np.float16), best


def _round(x: Floats, inverse: Floats, zero: Floats | np.float32, out: Floats) -> None:
    """x · inverse, rounded, within 0 to 15 after the zero point is added."""
    np.multiply(x, inverse, out=out)
    np.rint(out, out=out)
    np.clip(out, -zero, 15 - zero, out=out)


def _final(x: Floats, scales: NDArray[np.float16], zero: Floats | np.float32) -> Floats:
    """The values to store, with the scales as they are stored: float32 [blocks, block]."""
    q = np.empty_like(x)
    _round(x, _inverse(scales.astype(np.float32)), zero, q)
    q += zero
    return q.T


def _inverse(scale: Floats) -> Floats:
    """1 / scale; zero where that would overflow."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > TINY)


def _q8_0(x: Floats, _: Floats | None) -> tuple[Bytes, NDArray[np.float16], None]:
    """8 bits around 128, as ggml's `quantize_row_q8_0_ref`: scale peak / 127, halves away from zero."""
    x = x.reshape(-1, x.shape[-1])
    out, scales = np.empty(x.shape, np.uint8), np.empty(len(x), np.float16)
    for part in _parts(len(x)):
        scale = np.abs(x[part]).max(axis=1) / np.float32(127)
        t = x[part] * _inverse(scale)[:, None]
        t += np.copysign(UNDER_HALF, t)
        np.bitwise_xor(t.astype(np.int8).view(np.uint8), 0x80, out=out[part])
        with np.errstate(over="ignore"):  # infinite scales are refused when they are packed
            scales[part] = scale
    return out, scales, None


def _q4_0(x: Floats, weights: Floats | None) -> tuple[Bytes, NDArray[np.float16], None]:
    """The numbers of ggml's q4_0 (element j in the low, j + 16 in the high nibble), by its library."""
    kind, rows = number_type("q4_0"), np.ascontiguousarray(x.reshape(len(x), -1))
    raw = np.empty((x.shape[0] * x.shape[1], kind.block_bytes), np.uint8)
    ggml.encode_rows(kind, rows, raw.reshape(-1), None if weights is None else weights.reshape(-1))
    scales = np.ascontiguousarray(raw[:, :2]).view(np.float16).reshape(-1)
    return np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1), scales, None


BLOCK_TYPES = {
    t.name: t
    for t in (
        BlockType("u4_32", 4, 32, False, _symmetric),
        BlockType("u4_128", 4, 128, False, _symmetric),
        BlockType("u4_32z", 4, 32, True, _asymmetric),
        BlockType("u4_128z", 4, 128, True, _asymmetric),
        BlockType("q4_0", 4, 32, False, _q4_0),
        BlockType("q8_0", 8, 32, False, _q8_0, weighted=False),
    )
}
