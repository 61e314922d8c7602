"""Plain numbers in numpy: float32, float16 and bfloat16, without an engine's library. The bytes are ggml's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NAMES = frozenset(("f32", "f16", "bf16"))
ENDS = {"f16": 65520.0, "bf16": float(np.uint32(0x7F7F8000).view(np.float32))}  # from here on they round to infinity
SLICE = 1 << 16  # values at a time: temporary arrays stay in the cache


def encode(name: str, rows: NDArray[np.float32], out: NDArray[np.uint8]) -> bool:
    """Encode float32 values into `out`, rounding to the nearest, ties to even; False where one is or becomes infinite
    or NaN.
    """
    values, finite = rows.reshape(-1), True
    if name == "f32":
        out.view(np.float32)[:] = values
        return bool(np.isfinite(values).all())
    halves = out.view(np.uint16)
    for at in range(0, len(values), SLICE):
        part = values[at : at + SLICE]
        if name == "f16":
            with np.errstate(over="ignore"):
                bits = part.astype(np.float16).view(np.uint16)
        else:
            wide = np.ascontiguousarray(part).view(np.uint32)
            rounded = wide >> 16
            rounded &= 1
            rounded += 0x7FFF
            rounded += wide
            rounded >>= 16
            bits = rounded.astype(np.uint16)
        finite = finite and bool(part.max() < ENDS[name] and part.min() > -ENDS[name])  # NaN is neither
        halves[at : at + SLICE] = bits
    return finite


def decode(name: str, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decode the first values of `data` into `out`, float32 of any shape, contiguous."""
    values = out.reshape(-1)
    if name == "f32":
        values[:] = data[: values.nbytes].view(np.float32)
        return
    halves = data[: 2 * values.size].view(np.uint16)
    for at in range(0, len(values), SLICE):
        part = halves[at : at + SLICE]
        if name == "f16":
            values[at : at + SLICE] = part.view(np.float16)
        else:
            wide = values[at : at + SLICE].view(np.uint32)
            wide[:] = part
            wide <<= 16


def valid(name: str, data: NDArray[np.uint8]) -> bool:
    """Whether all numbers are finite."""
    if name == "f32":
        return bool(np.isfinite(data.view(np.float32)).all())
    exponent = 0x7C00 if name == "f16" else 0x7F80
    return bool(((data.view(np.uint16) & exponent) != exponent).all())
