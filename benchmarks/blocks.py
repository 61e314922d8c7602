#!/usr/bin/env python3
"""How the steps of the 4-bit searches were chosen: greedily, by the error they leave on three kinds of values.

    python benchmarks/blocks.py

Blocks of 32 normal, Student (5 degrees of freedom) and Laplace values, 2:1:1. Prints the relative error after each
step that is added to the two ends of the range (symmetric) or to the plain range (with zero points). Then the same for
the further ones where the columns' squared errors count differently: log-normal weights, with deviations of 0.7 to 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.quantize.blocked import STEPS, STRETCHES

Floats = NDArray[np.float32]
STARTS = [-8.0, 7.0], [1.0]


def values() -> Floats:
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((6000, 32)), rng.standard_t(5, (3000, 32)), rng.laplace(size=(3000, 32))
    return np.concatenate(parts).astype(np.float32)


def error(x: Floats, inverse: Floats, zero: Floats, w: Floats | float = 1) -> Floats:
    """Weighted squared error of each block with the scale that fits its rounded values best, kept as float16."""

    def rounded(by: Floats) -> Floats:
        return np.clip(np.rint(x * by[:, None]), -zero[:, None], 15 - zero[:, None])

    v = rounded(inverse)
    vv = (w * v * v).sum(1)
    scale = np.divide((w * x * v).sum(1), vv, out=np.zeros_like(vv), where=vv > 0).astype(np.float16).astype(np.float32)
    q = rounded(np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0))
    return (w * (x - q * scale[:, None]) ** 2).sum(1)


def greedy(title: str, total: float, errors: dict[float, Floats], chosen: list[float], more: int) -> None:

    def left(steps: Sequence[float]) -> float:
        return float(np.sqrt(np.minimum.reduce([errors[s] for s in steps]).sum() / total))

    print(f"\n{title}: {chosen} leave {left(chosen):.4f}")
    for _ in range(more):
        chosen = [*chosen, min((s for s in errors if s not in chosen), key=lambda s: left([*chosen, s]))]
        print(f"  and {chosen[-1]:.2f}: {left(chosen):.4f}")
    print(f"  all {len(errors)}: {left(list(errors)):.4f}")


def main() -> None:
    x = values()
    search(x, 1, STARTS)
    rng = np.random.default_rng(1)
    w = np.exp(rng.uniform(0.7, 2, (len(x), 1)) * rng.standard_normal(x.shape)).astype(np.float32)
    search(x, w / w.mean(1, keepdims=True), (list(STEPS), list(STRETCHES)), "weighted, ")


def search(x: Floats, w: Floats | float, start: tuple[list[float], list[float]], title: str = "") -> None:
    total = float((w * x**2).sum())
    peak = x[np.arange(len(x)), np.abs(x).argmax(1)]
    eight = np.full(len(x), 8, np.float32)
    steps = sorted({-8.0, 7.0, *(round(sign * s, 2) for s in np.arange(5.5, 11.1, 0.3) for sign in (1, -1))})
    errors = {s: error(x, np.float32(s) / peak, eight, w) for s in {*steps, *start[0]}}
    greedy(f"{title}symmetric", total, errors, start[0], 6)
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    stretches = {*start[1], *(round(float(f), 2) for f in np.arange(0.8, 1.25, 0.02))}
    errors = {}
    for f in stretches:
        inverse = (15 / np.float32(f)) / (high - low)
        errors[f] = error(x, inverse, np.clip(np.rint(-low * inverse), 0, 15), w)
    greedy(f"{title}zero points", total, errors, start[1], 7)


if __name__ == "__main__":
    main()
