"""What was evaluated of other conversations, kept in memory: taking it back costs a copy, not a prefill."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError

if TYPE_CHECKING:
    from .engine import Engine

LEAST = 32  # tokens that must be at stake: fewer are evaluated in the time of a copy


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    tokens: tuple[int, ...]
    state: NDArray[np.uint8]


class Stash:
    """States of one engine's model, `limit` bytes at most; those that were used last stay. Any thread may use it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: list[_Entry] = []  # the one that was used last is the last
        self._lock = threading.Lock()

    def swap(self, engine: Engine, cached: list[int], wanted: Sequence[int]) -> list[int]:
        """The engine's cache is to hold the beginning of `wanted`; what it holds then, of `cached` or of the stash.

        What would be lost of `cached` is kept.
        """
        if not self.limit:
            return cached
        with self._lock:
            return self._swap(engine, cached, wanted)

    def _swap(self, engine: Engine, cached: list[int], wanted: Sequence[int]) -> list[int]:
        here = shared(cached, wanted)
        best = max(self._entries, key=lambda e: shared(e.tokens, wanted), default=None)
        if len(cached) - here >= LEAST and engine.keep(len(cached)) == len(cached):
            self._put(engine, cached)
        if best is None or shared(best.tokens, wanted) < here + LEAST:
            return cached
        self._entries = [e for e in self._entries if e is not best]  # it comes again when it is left
        try:
            engine.restore(len(best.tokens), best.state)
        except InputError:
            return []
        return list(best.tokens)

    def _put(self, engine: Engine, cached: list[int]) -> None:
        size, tokens = engine.state_bytes(), tuple(cached)
        if size > self.limit:
            return
        self._entries = [e for e in self._entries if e.tokens != tokens[: len(e.tokens)]]
        while self._entries and size + sum(e.state.nbytes for e in self._entries) > self.limit:
            del self._entries[0]
        engine.copy_state(state := np.empty(size, np.uint8))
        self._entries.append(_Entry(tokens, state))


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)
