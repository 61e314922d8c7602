"""What a rotation's frequencies are, for formats that store them or tables of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .architecture import Llama3Scaling, Rope

Floats = NDArray[np.float32]


def periods(rope: Rope) -> Floats:
    """Positions a radian without scaling, float32 [dims / 2], as transformers computes them.

    Powers come by way of float64: numpy's in float32 have other last digits on other processors.
    """
    exponents = np.arange(0, rope.dims, 2, dtype=np.float32) / np.float32(rope.dims)
    powers: Floats = np.power(np.float32(rope.theta), exponents, dtype=np.float64).astype(np.float32)
    return powers


def llama3_factors(rope: Rope, scaling: Llama3Scaling) -> Floats:
    """What the periods are multiplied by, float32 [dims / 2] (`_compute_llama3_parameters` in transformers)."""
    turns = scaling.original_context / (2 * math.pi * periods(rope).astype(np.float64))  # in the original context
    smooth = np.clip((turns - scaling.low_freq) / (scaling.high_freq - scaling.low_freq), 0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)
