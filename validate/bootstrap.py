"""Confidence intervals by bootstrap over chunks: positions inside a chunk are correlated, chunks nearly not.

The interval is studentised (bootstrap-t; B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 12): chunk means of a KLD are skewed, and percentiles of few chunks then cover too little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAMPLES = 4000
SEED = 20261124
FEWEST = 30  # chunks in every domain, below which an interval would cover too little
LEVEL = 0.95


def enough(domains: Sequence[Floats]) -> bool:
    """Whether every domain has the chunks that an interval needs."""
    return min(len(d) for d in domains) >= FEWEST


def interval(domains: Sequence[Floats], finish: Callable[[Floats], Floats]) -> tuple[float, float]:
    """95 % interval of `finish`(unweighted mean of the domains' means).

    `domains`: the chunks' means, float64 [chunks], of each domain. Chunks are drawn with replacement inside
    their domain.
    """
    rng = np.random.default_rng(SEED)
    centre, error = _mean_and_error([d[None, :] for d in domains])
    draws, errors = _mean_and_error([d[rng.integers(0, len(d), (SAMPLES, len(d)))] for d in domains])
    if errors.min() <= 0:  # some draws do not vary: percentiles
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    else:
        t = np.quantile((draws - centre) / errors, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
        low, high = centre - t * error
    ends = finish(np.maximum(np.array([low, high]), min(float(d.min()) for d in domains)))
    return float(ends.min()), float(ends.max())


def _mean_and_error(domains: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Chunks [draws, chunks] of each domain → the mean of the domains' means [draws] and its standard error."""
    mean = np.mean([d.mean(axis=1) for d in domains], axis=0)
    variance = np.sum([d.var(axis=1, ddof=1) / d.shape[1] for d in domains], axis=0)
    return mean, np.sqrt(variance) / len(domains)


def ratio(first: Sequence[Floats], second: Sequence[Floats]) -> tuple[float, float, float]:
    """Paired bootstrap of two candidates over the same chunks: mean(first) / mean(second), low, high.

    The interval is that of the logarithm of the ratio; the draws of both candidates are the same.
    """
    rng = np.random.default_rng(SEED)
    tiny = np.finfo(np.float64).tiny
    a, b = np.zeros(SAMPLES), np.zeros(SAMPLES)
    for x, y in zip(first, second, strict=True):
        picks = rng.integers(0, len(x), (SAMPLES, len(x)))
        a += x[picks].mean(axis=1)
        b += y[picks].mean(axis=1)
    logs = np.log(np.maximum(a, tiny)) - np.log(np.maximum(b, tiny))
    low, high = np.exp(np.quantile(logs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    whole = max(sum(float(x.mean()) for x in first), tiny) / max(sum(float(y.mean()) for y in second), tiny)
    return whole, float(low), float(high)
