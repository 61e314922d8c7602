"""Several sequences in one llama.cpp context: one call computes what all of them want next.

A lane's thread leaves its tokens here and waits. One thread of ours packs what all of them want into a batch, computes
it, hands out the logits and wakes them. Before that it waits for lanes that are about to ask, since they choose their
next token just now: those that got logits in the last call, for at most half of that call's time. Nobody is waited for
longer. So a lane that has ended, is slow, or whose reader went away holds up nobody, and needs to tell nobody.

It is one thread, since OpenMP keeps threads of its own for each thread that computes, which spin for a while behind it.
A lane that is the only one computes in its caller's thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PIECE = 64  # tokens of prompts in a call that also has answers' tokens, which wait for them
PATIENCE = 0.03  # seconds, at most, that a call waits for lanes that are about to ask


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one sequence from `position` on, and how many of the last ones' logits are wanted."""

    seq: int
    position: int
    tokens: Sequence[int]
    wanted: int


@dataclass(slots=True, eq=False)
class _Ask:
    """What a lane wants; a call may compute a part of it."""

    whole: Part
    done: int = 0  # tokens that are computed
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    error: Exception | None = None

    @property
    def left(self) -> int:
        return 0 if self.error else len(self.whole.tokens) - self.done

    def part(self, most: int) -> Part:
        """The next tokens, so many at most."""
        w, end = self.whole, min(len(self.whole.tokens), self.done + most)
        wanted = max(0, end - max(self.done, len(w.tokens) - w.wanted))
        return Part(w.seq, w.position + self.done, w.tokens[self.done : end], wanted)


class Lanes:
    """What the lanes of one context share. `compute` gives the wanted logits of some parts, in their order, float32
    [rows, vocab]: its own memory until it is called again, from one thread at a time. `batch`: most tokens of a call.
    """

    def __init__(self, compute: Callable[[Sequence[Part]], NDArray[np.float32]], batch: int) -> None:
        self._compute, self._batch = compute, batch
        self._changed = threading.Condition()
        self._open = {0}
        self._asks: list[_Ask] = []
        self._about: dict[int, float] = {}  # lane → until when it is waited for
        self._user: object = None  # who has the context now
        self._guests = 0  # that wait for `alone`
        self._thread: threading.Thread | None = None

    def enter(self, seq: int) -> None:
        """A further lane is open."""
        with self._changed:
            self._open.add(seq)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sampan-lanes", daemon=True)
                self._thread.start()

    def leave(self, seq: int) -> bool:
        """A lane is closed; whether it was the last one, behind which nothing is computed."""
        with self._changed:
            last = self._open == {seq}
            self._open.discard(seq)
            self._changed.notify_all()
        if last and self._thread is not None:
            self._thread.join()
        return last

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing is computed inside of the block; it goes before calls that wait."""
        user = object()
        try:
            with self._changed:
                self._guests += 1
                try:
                    self._changed.wait_for(lambda: self._user is None)
                    self._user = user
                finally:
                    self._guests -= 1
            yield
        finally:
            self._free(user)

    def _free(self, user: object) -> None:
        with self._changed:
            if self._user is user:
                self._user = None
            self._changed.notify_all()

    def evaluate(self, whole: Part) -> NDArray[np.float32]:
        """The wanted logits, [wanted, vocab]. A fault of a call is raised in each of its lanes."""
        if self._thread is None:
            return self._compute([whole])
        ask = _Ask(whole)
        try:
            with self._changed:
                self._about.pop(whole.seq, None)
                self._asks.append(ask)
                self._changed.notify_all()
                self._changed.wait_for(lambda: not ask.left)
        finally:
            with self._changed:
                self._asks = [a for a in self._asks if a is not ask]
        if ask.error is not None:
            raise ask.error
        return ask.rows[0] if len(ask.rows) == 1 else np.concatenate(ask.rows)

    def _work(self) -> None:
        while parts := self._next():
            self._call(parts)

    def _next(self) -> dict[_Ask, Part]:
        """Wait until there is something to compute and the context is free, then take both; nothing at the end."""
        with self._changed:
            while self._open:
                if self._user is not None or self._guests or not any(a.left for a in self._asks):
                    self._changed.wait()
                elif (seconds := max(self._about.values(), default=0.0) - time.monotonic()) > 0:
                    self._changed.wait(seconds)
                else:
                    self._user = self._thread
                    return self._packed()
        return {}

    def _packed(self) -> dict[_Ask, Part]:
        """The next call: the tokens of answers, then prompts in the order in which they came."""
        asks = [a for a in self._asks if a.left]
        answers = sum(a.left == 1 for a in asks)
        room = min(self._batch, answers + PIECE) if answers else self._batch
        parts = {}
        for ask in sorted(asks, key=lambda a: a.left > 1):
            if room:
                parts[ask] = ask.part(room)
                room -= len(parts[ask].tokens)
        return parts

    def _call(self, parts: dict[_Ask, Part]) -> None:
        began, rows, error = time.monotonic(), list[NDArray[np.float32]](), None
        try:
            logits = self._compute(list(parts.values()))
            ends = np.cumsum([part.wanted for part in parts.values()])
            rows = [r.copy() for r in np.split(logits, ends[:-1])]  # others compute while a lane chooses
        except Exception as e:
            error = e
        with self._changed:
            now = time.monotonic()
            for n, (ask, part) in enumerate(parts.items()):
                ask.error = error
                ask.rows += rows[n : n + 1]
                ask.done += len(part.tokens)
                if not ask.left:
                    self._about[part.seq] = now + min(PATIENCE, (now - began) / 2)
            self._user = None
            self._changed.notify_all()
