"""Choose the next token from logits. One implementation for every engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, brief


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 switch a step off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Sampling:
        """The `general.sampling.*` keys of a GGUF; greedy where there are none."""

        def get(key: str, default: float) -> float:
            value = metadata.get(f"general.sampling.{key}", default)
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise InputError(f"general.sampling.{key}: expected a number, found {brief(value)}")
            return number

        return cls(
            temperature=get("temp", 0.0),
            top_k=int(get("top_k", 0)),
            top_p=get("top_p", 1.0),
            min_p=get("min_p", 0.0),
            repetition_penalty=get("penalty_repeat", 1.0),
        )


def sample(logits: NDArray[np.float32], context: Sequence[int], s: Sampling, rng: np.random.Generator) -> int:
    """The next token id from float32 logits [vocab], in transformers' order: penalty, temperature, k, p, min-p.

    `context` are the tokens so far, for the repetition penalty (arXiv 1909.05858).
    """
    if s.repetition_penalty != 1.0:
        logits = logits.copy()
        seen = np.unique(np.asarray(context))
        logits[seen] = np.where(
            logits[seen] > 0, logits[seen] / s.repetition_penalty, logits[seen] * s.repetition_penalty
        )
    if s.temperature <= 0:
        return int(np.argmax(logits))
    k = min(s.top_k, len(logits)) if s.top_k > 0 else len(logits)
    ids = np.argpartition(logits, -k)[-k:]
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    scaled = logits[ids].astype(np.float64) / s.temperature
    p = np.exp(scaled - scaled[0])
    p /= p.sum()
    keep = (np.cumsum(p) - p < s.top_p) & (p >= s.min_p * p[0])
    keep[0] = True  # whatever is asked for, one token is left
    p = np.where(keep, p, 0)
    return int(rng.choice(ids, p=p / p.sum()))
