"""The rotary tables of a model, as transformers computes them in float32."""

from __future__ import annotations

import math

import numpy as np

from ...architecture import LinearScaling, Llama3Scaling, Rope, YarnScaling
from ...rope import Floats, llama3_factors, periods


def tables(rope: Rope, context: int) -> tuple[Floats, Floats]:
    """cos and sin, float32 [context, dims / 2], for the first `context` positions."""
    inverse, factor = _frequencies(rope)
    angles = np.arange(context, dtype=np.float32)[:, None] * inverse
    cos, sin = np.empty((2, *angles.shape), np.float32)
    for function, out in ((np.cos, cos), (np.sin, sin)):  # by way of float64, see `periods`
        function(angles, out=out, dtype=np.float64, casting="same_kind")
        out *= factor
    return cos, sin


def _frequencies(rope: Rope) -> tuple[Floats, np.float32]:
    """Radians a position, float32 [dims / 2], and what cos and sin are multiplied by."""
    plain = (1 / periods(rope)).astype(np.float32)
    scaling = rope.scaling
    if scaling is None:
        return plain, np.float32(1)
    if isinstance(scaling, LinearScaling):
        return (plain / np.float32(scaling.factor)).astype(np.float32), np.float32(1)
    if isinstance(scaling, Llama3Scaling):
        return plain / llama3_factors(rope, scaling), np.float32(1)
    return _yarn(rope, scaling), np.float32(_attention_factor(scaling))


def _attention_factor(scaling: YarnScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0


def _yarn(rope: Rope, scaling: YarnScaling) -> Floats:
    """Slow dimensions interpolated, fast ones kept, a ramp between (arXiv 2309.00071, section 3.2)."""

    def dimension(rotations: float) -> float:
        return rope.dims * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), rope.dims - 1)
    steps = (np.arange(rope.dims // 2, dtype=np.float32) - low) / max(high - low, 0.001)
    keep = 1 - np.clip(steps, 0, 1)
    slow = periods(rope)
    inverse: Floats = (1 / (scaling.factor * slow) * (1 - keep) + 1 / slow * keep).astype(np.float32)
    return inverse
