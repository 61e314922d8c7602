"""What two models say about the same positions, and what a metric makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Columns over positions, float64 of one shape, [chunks, positions] or any other.

    `kld`: KL(reference ‖ candidate) in nats over the whole vocabulary. `same`: 1 where both put the same token
    first, else 0. `reference`, `candidate`: ln p of the token that follows in the text.
    """

    kld: Floats
    same: Floats
    reference: Floats
    candidate: Floats

    def map(self, change: Callable[[Floats], Floats]) -> Scores:
        """The same change to every column."""
        return Scores(*(change(getattr(self, f.name)) for f in fields(self)))


def score(reference: NDArray[np.float32], candidate: NDArray[np.float32], following: NDArray[np.int64]) -> Floats:
    """Logits [n, vocab] of two models and the n tokens that follow → float64 [n, 4], the columns of `Scores`.

    In float64 throughout: at a KLD of 1e-6 float32 logarithms leave no digit. NaN or Inf in either gives NaN.
    """
    out = np.empty((len(following), 4))
    with np.errstate(invalid="ignore", over="ignore"):
        for i, token in enumerate(following):
            a = reference[i].astype(np.float64)
            b = candidate[i].astype(np.float64)
            first_a, first_b = int(np.argmax(a)), int(np.argmax(b))
            a -= a[first_a]
            b -= b[first_b]
            p = np.exp(a)
            ln_a, ln_b = np.log(p.sum()), np.log(np.exp(b).sum())
            ln_p, ln_q = a[token] - ln_a, b[token] - ln_b
            a -= b
            kld = p @ a / p.sum() - ln_a + ln_b
            out[i] = max(kld, 0.0) if kld > -1e-9 else kld, first_a == first_b, ln_p, ln_q
    return out


@dataclass(frozen=True, slots=True)
class Metric:
    """`values` of each position; the metric of some positions is `finish` of their mean.

    `ideal` is what a perfect candidate gets, None where there is no such number. `digits` for tables.
    """

    title: str
    values: Callable[[Scores], Floats]
    finish: Callable[[Floats], Floats] = lambda mean: mean
    ideal: float | None = 0.0
    digits: int = 4
