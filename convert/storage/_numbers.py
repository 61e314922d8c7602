"""What several encodings share: table look-ups, 4-bit codes, scales of groups along a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.quantize.ggml import decode_rows
from sampan.quantize.types import number_type

from ..encoding import Buffer, Part

CHUNK = 1 << 15  # codes looked up at once: numpy makes 8-byte indices of them
FLOATS = ("F32", "BF16", "F16")


def look_up(table: NDArray[Any], codes: NDArray[Any], out: NDArray[Any]) -> None:
    """`out[i] = table[codes[i]]`, both flat and contiguous."""
    for i in range(0, codes.size, CHUNK):
        np.take(table, codes[i : i + CHUNK], out=out[i : i + CHUNK], mode="clip")  # "raise" would copy


def pairs(values: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Table for bytes of two codes, the low one first: 16 values → 256 pairs, each as one 8-byte item."""
    byte = np.arange(256)
    return np.stack([values[byte & 15], values[byte >> 4]], axis=1).astype(np.float32).view(np.complex64).reshape(-1)


def look_up_pairs(table: NDArray[np.complex64], codes: Buffer, out: NDArray[np.float32]) -> None:
    """Bytes of two codes → float32, low nibble first."""
    look_up(table, codes, out.reshape(-1).view(np.complex64))


def _e4m3() -> NDArray[np.float32]:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size[code & 127 == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


# E4M3 has no infinity: 0x7f and 0xff are NaN, exponent bias 7 (arXiv 2209.05433)
E4M3 = _e4m3()
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1_PAIRS = pairs(np.concatenate([_E2M1, -_E2M1]))


def floats(part: Part, raw: Buffer) -> NDArray[np.float32]:
    """The stored numbers of a companion as float32, flat."""
    kind = number_type(part.info.dtype.lower())
    out = np.empty(raw.nbytes // kind.block_bytes, np.float32)
    decode_rows(kind, raw, out[None])
    return out


def nibbles(raw: Buffer) -> NDArray[np.uint8]:
    """Each byte → two codes, low nibble first."""
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)
