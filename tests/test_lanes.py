"""How several lanes share the calls of one engine: over one that computes nothing, but says whose its logits are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sampan.errors import InputError
from sampan.runtime.engines import _lanes
from sampan.runtime.engines._lanes import PIECE, Lanes, Part


class Computing:
    """Logits that say whose they are: lane, position, token. It may be slow, or fail."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls, self.fail = seconds, list[list[Part]](), False
        self._inside = threading.Lock()

    def __call__(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        assert self._inside.acquire(blocking=False), "from one thread at a time"
        try:
            self.calls.append(list(parts))
            time.sleep(self.seconds)
            if self.fail:
                raise InputError("a fault")
            rows = [(p.seq, p.position + i, p.tokens[i]) for p in parts
                    for i in range(len(p.tokens) - p.wanted, len(p.tokens))]  # fmt: skip
            return np.array(rows, np.float32).reshape(-1, 3)
        finally:
            self._inside.release()


def entered(computing: Computing, count: int, batch: int = 512) -> Lanes:
    found = Lanes(computing, batch)
    for seq in range(1, count):
        found.enter(seq)
    return found


def together(*work: Callable[[], None]) -> None:
    """Each in a thread; what is raised in one is raised here."""
    raised: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(t.is_alive() for t in threads), "somebody waits for ever"
    if raised:
        raise raised[0]


def test_everyone_gets_their_own_logits() -> None:
    computing = Computing()
    shared = entered(computing, 5, batch=100)

    def lane(seq: int) -> None:
        rng, position = np.random.default_rng(seq), 0
        for _ in range(60):
            tokens = rng.integers(0, 1000, rng.choice([1, 1, 1, 7, 99, 100])).tolist()
            wanted = int(rng.integers(0, len(tokens) + 1))
            given = shared.evaluate(Part(seq, position, tokens, wanted))
            position += len(tokens)
            at = range(len(tokens) - wanted, len(tokens))
            assert given.tolist() == [[seq, position - len(tokens) + i, tokens[i]] for i in at]
            if rng.random() < 0.1:
                with shared.alone():
                    assert computing._inside.acquire(blocking=False)
                    computing._inside.release()

    together(*(lambda seq=seq: lane(seq) for seq in range(5)))  # type: ignore[misc]
    assert max(sum(len(p.tokens) for p in call) for call in computing.calls) <= 100
    assert shared._asks == [] and shared._user is None


def test_a_long_prompt_takes_little_of_each_call() -> None:
    """Answers go on beside it, a token with each call, and nothing of it is left out."""
    computing = Computing(0.005)
    shared, over = entered(computing, 3), threading.Event()

    def prompt() -> None:
        for at in range(0, 2048, 512):
            shared.evaluate(Part(0, at, list(range(at, at + 512)), 0))
        over.set()

    def answer(seq: int) -> None:
        position = 0
        while not over.is_set():
            shared.evaluate(Part(seq, position, [1], 1))
            position += 1

    together(lambda: answer(1), lambda: answer(2), prompt)
    pieces = [p for call in computing.calls for p in call if p.seq == 0]
    assert [t for p in pieces for t in p.tokens] == list(range(2048))
    beside = [call for call in computing.calls if call[-1].seq == 0 and len(call) > 1]
    assert all(len(call[-1].tokens) <= PIECE for call in beside)
    assert len(beside) > 20
    whole = [call for call in beside if len(call) == 3]
    assert len(whole) > 0.8 * len(beside), "both answers are in nearly all of them"


def test_nobody_waits_for_a_lane_that_does_not_come_back() -> None:
    computing = Computing(0.01)
    shared = entered(computing, 2)

    def lane(seq: int, tokens: int) -> None:
        for position in range(tokens):
            shared.evaluate(Part(seq, position, [1], 1))

    began = time.monotonic()
    together(lambda: lane(0, 40), lambda: lane(1, 5))
    assert [len(c) for c in computing.calls].count(2) >= 4
    assert time.monotonic() - began < 40 * 0.01 + 1


def test_lanes_that_choose_for_long_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lanes, "PATIENCE", 0.002)
    shared, over = entered(Computing(0.01), 2), threading.Event()
    slow = 0

    def quick() -> None:
        for position in range(50):
            shared.evaluate(Part(0, position, [1], 1))
        over.set()

    def thinking() -> None:
        nonlocal slow
        while not over.is_set():
            shared.evaluate(Part(1, slow, [1], 1))
            slow += 1
            time.sleep(0.05)

    together(quick, thinking)
    assert 5 <= slow <= 25


def test_a_fault_reaches_every_lane_of_its_call_and_no_later_one() -> None:
    computing = Computing(0.02)
    shared, failed = entered(computing, 3), []
    computing.fail = True

    def lane(seq: int) -> None:
        with pytest.raises(InputError, match="a fault"):
            shared.evaluate(Part(seq, 0, list(range(400)), 1))
        failed.append(seq)

    together(*(lambda seq=seq: lane(seq) for seq in range(3)))  # type: ignore[misc]
    assert sorted(failed) == [0, 1, 2]
    computing.fail = False
    assert shared.evaluate(Part(1, 0, [7], 1)).tolist() == [[1, 0, 7]]
    assert shared._asks == [] and shared._user is None


def test_who_wants_the_context_alone_gets_it_between_calls() -> None:
    """Also from a lane that asks again at once, as a long prompt does."""
    computing = Computing(0.01)
    shared, over = entered(computing, 2), threading.Event()
    calls: list[int] = []

    def prompt() -> None:
        at = 0
        while not over.is_set():
            shared.evaluate(Part(0, at, [1] * 512, 0))
            at += 512

    def guest() -> None:
        for _ in range(10):
            time.sleep(0.02)
            before = len(computing.calls)
            with shared.alone():
                calls.append(len(computing.calls) - before)
        over.set()

    together(prompt, guest)
    assert max(calls) <= 2
