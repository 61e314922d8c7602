"""From scores to the numbers of a report: each metric per domain and as the unweighted mean of the domains."""

from __future__ import annotations

from typing import Any

import numpy as np

from sampan.registry import load_all

from . import bootstrap
from .metrics._scores import Metric, Scores

METRICS_VERSION = 1  # of every number that a report holds; rises when one would come out otherwise
QUANTILES = {"median": 0.5, "99 %": 0.99, "99.9 %": 0.999, "max": 1.0}
MEAN = "mean"  # of the domains
HISTOGRAM = (-8.0, 2.0, 40)  # log10 of the KLD: from, to, bins


def metrics() -> dict[str, Metric]:
    """Every metric by its name, KLD first."""
    found: dict[str, Metric] = load_all("sampan.validate.metrics", "METRIC")
    order = ["kld", "top1", "rms_dp", "ppl_ratio"]
    return {n: found[n] for n in [*order, *(n for n in found if n not in order)]}


def summarise(scores: dict[str, Scores]) -> dict[str, dict[str, Any]]:
    """Domain → metric → value, low, high (None without an interval); KLD with its quantiles too."""
    parts = {name: {name: s} for name, s in scores.items()} | {MEAN: scores}
    return {name: _numbers(part) for name, part in parts.items()}


def _numbers(scores: dict[str, Scores]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "chunks": sum(len(s.kld) for s in scores.values()),
        "positions": sum(s.kld.size for s in scores.values()),
    }
    for name, metric in metrics().items():
        chunks = [metric.values(s).mean(axis=1) for s in scores.values()]
        value = float(metric.finish(np.mean([c.mean() for c in chunks])))
        low = high = None
        if bootstrap.enough(chunks):
            low, high = bootstrap.interval(chunks, metric.finish)
        out[name] = {"value": value, "low": low, "high": high}
    flat = np.concatenate([s.kld.ravel() for s in scores.values()])
    out["kld"] |= {name: float(np.quantile(flat, q)) for name, q in QUANTILES.items()}
    return out


def histogram(scores: dict[str, Scores]) -> dict[str, list[float]]:
    """Domain → share of positions in each bin of log10 KLD; what lies outside counts in the outer bins."""
    first, last, bins = HISTOGRAM
    edges = np.linspace(first, last, bins + 1)
    out = {}
    for name, s in scores.items():
        logs = np.log10(np.maximum(np.nan_to_num(s.kld, nan=np.inf), 1e-300)).clip(first, last)
        out[name] = [float(n) for n in np.histogram(logs, edges)[0] / s.kld.size]
    return out


def compare(first: dict[str, Scores], second: dict[str, Scores]) -> dict[str, Any]:
    """Paired comparison of two candidates by KLD: ratio, interval, and which is better (or a tie)."""
    a = [s.kld.mean(axis=1) for s in first.values()]
    b = [s.kld.mean(axis=1) for s in second.values()]
    ratio, low, high = bootstrap.ratio(a, b)
    if not bootstrap.enough(a):
        return {"ratio": ratio, "low": None, "high": None, "better": None}
    better = "first" if high < 1 else "second" if low > 1 else "tie"
    return {"ratio": ratio, "low": low, "high": high, "better": better}
