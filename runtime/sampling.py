"""Choose the next token from logits. One implementation for every engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, brief, wrong

COARSE = 16  # bits of a weight that do not count where the edge of the nucleus is looked for first
BLOCK = 512  # tokens whose weights are summed first


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1 and the others at 0 switch
    a step off.

    The repetition penalty counts prompt and answer (arXiv 1909.05858), the other two the answer alone, as OpenAI has
    them: `frequency_penalty` for each time that a token was chosen, `presence_penalty` once. `logit_bias` is added to
    the logits of tokens by id.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

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

    def check(self, vocab: int) -> None:
        """Raises InputError for values with which nothing can be chosen, and biases of tokens that do not exist."""
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise wrong(name, "a number", value)
        if self.temperature < 0:
            raise wrong("temperature", "0 or more", self.temperature)
        if self.repetition_penalty <= 0:
            raise wrong("repetition_penalty", "more than 0", self.repetition_penalty)
        for token, bias in self.logit_bias.items():
            if not 0 <= token < vocab:
                raise wrong("logit_bias", f"token ids from 0 to {vocab - 1}", token)
            if not math.isfinite(bias):
                raise wrong(f"logit_bias: {token}", "a number, such as -100", bias)


class Sampler:
    """Chooses the tokens of one answer, in transformers' order: bias, penalties, temperature, k, p, min-p."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], seed: int) -> None:
        self._s, self._rng = sampling, np.random.default_rng(seed)
        self._seen = np.unique(np.asarray(prompt, np.intp))  # ids that stand in prompt or answer
        self._known = set(self._seen.tolist())
        self._chosen, self._counts = np.empty(0, np.intp), np.empty(0, np.float32)  # ids of the answer, how often
        self._place: dict[int, int] = {}  # where an id stands among them
        self._biased = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32)
        counted = sampling.frequency_penalty or sampling.presence_penalty
        self._changes = bool(sampling.repetition_penalty != 1 or counted or len(self._biased))

    def choose(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token id from float32 logits [vocab], which stay as they are; it counts for the penalties.

        `allowed` [vocab] leaves out all others before any other step. Raises InputError where the model itself rules
        out all that are allowed.
        """
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
            if logits.max() == -np.inf:
                raise InputError("the model rules out every token that its schema allows, so none can be chosen")
        if self._changes:
            logits = self._changed(logits)
        if self._s.temperature <= 0:
            token = int(np.argmax(logits))
        else:
            ids, weights = candidates(logits, self._s)
            at = _draw(weights, self._rng)
            token = at if ids is None else int(ids[at])
        if self._changes:
            self._count(token)
        return token

    def _count(self, token: int) -> None:
        if token not in self._known:
            self._known.add(token)
            self._seen = np.append(self._seen, token)
        if token not in self._place:
            self._place[token] = len(self._chosen)
            self._chosen, self._counts = np.append(self._chosen, token), np.append(self._counts, np.float32(0))
        self._counts[self._place[token]] += 1

    def _changed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        s, logits = self._s, logits.copy()
        logits[self._biased] += self._bias
        if s.repetition_penalty != 1:
            old = logits[self._seen]
            logits[self._seen] = np.where(old > 0, old / s.repetition_penalty, old * s.repetition_penalty)
        if s.frequency_penalty or s.presence_penalty:
            logits[self._chosen] -= s.frequency_penalty * self._counts + s.presence_penalty
        return logits


def candidates(logits: NDArray[np.float32], s: Sampling) -> tuple[NDArray[np.intp] | None, NDArray[np.float32]]:
    """Ids in rising order (None: all of them) and their probabilities, not normalised, at a temperature above 0.

    Every step keeps the most probable tokens down to some logit, so the end is one threshold. Only top-p has to sort,
    and only the tokens that hold its share.
    """
    top = logits.max()
    least, ids = -np.inf, None
    if 0 < s.top_k < len(logits):
        least = np.partition(logits, -s.top_k)[-s.top_k]
    if least > -np.inf:
        ids = np.flatnonzero(logits >= least)
        logits = logits[ids]
    weights = _weights(logits, top, s.temperature)
    if s.top_p < 1:
        ids, weights = _kept(_nucleus(weights, s.top_p), ids, weights)
    if s.min_p > 0:  # the largest weight is 1
        ids, weights = _kept(np.flatnonzero(weights >= min(s.min_p, 1.0)), ids, weights)
    return ids, weights


def _kept(
    at: NDArray[np.intp], ids: NDArray[np.intp] | None, weights: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    return (at if ids is None else ids[at]), weights[at]


def _weights(logits: NDArray[np.float32], top: np.float32, temperature: float) -> NDArray[np.float32]:
    """exp((logits − top) / temperature); a temperature near 0 leaves the top alone."""
    with np.errstate(over="ignore", under="ignore"):
        weights: NDArray[np.float32] = np.exp((logits - top) * np.float32(min(1 / temperature, 1e30)))
    return weights


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """Where the fewest, most probable tokens stand that hold `top_p`; of equal ones the lower ids go first.

    Numbers from 0 on are ordered as their bits are. So the first bits, counted, tell within 1 % where the edge is, and
    only the few that are so near to it are sorted.
    """
    wanted = top_p * weights.sum(dtype=np.float64)
    keys = (weights.view(np.uint32) >> COARSE).astype(np.intp)
    held = np.cumsum(np.bincount(keys, weights)[::-1])
    at = min(int(np.searchsorted(held, wanted)), len(held) - 1)
    edge = len(held) - 1 - at
    near = np.flatnonzero(keys == edge)
    near = near[np.argsort(-weights[near], kind="stable")]
    left = wanted - (held[at - 1] if at else 0.0)
    size = int(np.searchsorted(np.cumsum(weights[near], dtype=np.float64), left)) + 1
    return np.sort(np.concatenate([np.flatnonzero(keys > edge), near[:size]]))


def _draw(weights: NDArray[np.float32], rng: np.random.Generator) -> int:
    """Where a uniform number falls in the cumulated weights: first in which block, then in which of its tokens."""
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    point = rng.random() * sums[-1]
    block = _place(sums, point)
    inside = np.cumsum(weights[starts[block] : starts[block] + BLOCK], dtype=np.float64)
    return int(starts[block]) + _place(inside, point - (sums[block - 1] if block else 0.0))


def _place(cumulated: NDArray[np.float64], point: float) -> int:
    """Whose share holds the point; of the last one that has a share, where rounding left it behind them all."""
    at = int(np.searchsorted(cumulated, point, side="right"))
    return min(at, int(np.searchsorted(cumulated, cumulated[-1])))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """log softmax of logits [vocab]: what the model itself thinks, before penalties and temperature."""
    top = logits.max()
    found: NDArray[np.float32] = logits - (top + np.float32(math.log(np.exp(logits - top).sum(dtype=np.float64))))
    return found
