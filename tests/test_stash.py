"""Conversations that take turns keep what was evaluated of them: the same answers, and nothing is evaluated again."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import openai
import pytest
from both_engines import artifacts, path
from server_engine import Scripted, serving

from sampan import runtime
from sampan.runtime import EngineOptions, Options, Sampling, Session, Stream
from sampan.runtime.server import turns
from sampan.runtime.stash import LEAST, Stash, shared

__all__ = ["artifacts", "path"]  # fixtures of the tests here
ROOM = EngineOptions(context=256, threads=1, kv="f32", prompt_cache=100_000_000)


def asks(session: Session) -> list[list[int]]:
    """Prompts of 60 tokens; the first two begin alike."""
    rng = np.random.default_rng(3)
    base = rng.integers(0, 1500, 60).tolist()
    return [base, base[:20] + rng.integers(0, 1500, 40).tolist(), rng.integers(0, 1500, 60).tolist()]


def on(seed: int) -> Options:
    return Options(40, Sampling(1.0, logit_bias={2033: -1e4, 2035: -1e4}), seed)


@pytest.mark.slow
def test_streams_that_take_turns_evaluate_nothing_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime.open(path, ROOM) as session:
        prompts = asks(session)
        wanted = []
        for n, prompt in enumerate(prompts):
            with runtime.open(path, EngineOptions(context=256, threads=1, kv="f32")) as plain:
                wanted.append(plain.stream(prompt, on(n)).read().tokens)
        evaluated: list[int] = []
        evaluate = session._engine.evaluate
        monkeypatch.setattr(
            session._engine, "evaluate", lambda tokens, n: (evaluated.append(len(tokens)), evaluate(tokens, n))[1]
        )
        streams: list[Stream] = [session.stream(p, on(n)) for n, p in enumerate(prompts)]
        found: list[list[int]] = [[], [], []]
        for _ in range(8):
            for stream, tokens in zip(streams, found, strict=True):
                tokens += [c.token for _, c in zip(range(5), stream, strict=False) if c.token is not None]
        assert [tuple(f) for f in found] == wanted
        hybrid = "hybrid" in path.name
        assert sum(evaluated) == 3 * (60 + 39) - (0 if hybrid else 20), "each token once, a common beginning, too"
        again = session.stream([*prompts[0], *wanted[0][:-1], 7, 8], on(0))
        assert again.read().usage.cached_tokens == 60 + 39, "and what was left is still there"


def test_without_room_nothing_is_kept_and_answers_are_right(path: Path) -> None:
    with runtime.open(path, EngineOptions(context=256, threads=1, kv="f32", prompt_cache=1000)) as session:
        a, b, _ = asks(session)
        first = session.stream(a, on(0)).read()
        session.stream(b, on(1)).read()
        again = session.stream(a, on(0)).read()
        assert again.tokens == first.tokens and again.usage.cached_tokens <= 20
        assert session.at_once(4) == 1


def test_how_many_fit() -> None:
    engine = Scripted(lambda text: "")
    with Session(engine, prompt_cache=4 * engine.context) as session:  # two states of two bytes a token
        assert [session.at_once(n) for n in (1, 2, 3, 4)] == [1, 2, 3, 3]
    with Session(engine) as session:
        assert session.at_once(4) == 1


def test_the_stash_keeps_to_its_limit_and_forgets_the_oldest() -> None:
    engine, rng = Scripted(lambda text: ""), np.random.default_rng(0)
    stash, known = Stash(1000), list[list[int]]()
    for _ in range(200):
        wanted = rng.integers(0, 3, rng.integers(1, 300)).tolist()
        if known and rng.random() < 0.5:
            old = known[rng.integers(len(known))]
            wanted = old[: rng.integers(1, len(old) + 1)] + wanted[:50]
        before = list(engine._cache)
        held = stash.swap(engine, before, wanted)
        assert held == engine._cache and shared(held, wanted) >= shared(before, wanted)
        assert sum(e.state.nbytes for e in stash._entries) <= 1000
        assert all(e.state.view(np.uint16).tolist() == list(e.tokens) for e in stash._entries)
        engine._cache = list(wanted)
        known.append(wanted)
    engine._cache = list(range(100))
    assert stash.swap(engine, engine._cache, [5] * 100) == list(range(100)) and len(stash._entries[-1].tokens) == 100
    short = list(range(LEAST - 1))
    engine._cache = short
    count = len(stash._entries)
    assert stash.swap(engine, short, [9] * 9) == short and len(stash._entries) == count, "not worth a copy"


@pytest.mark.slow
def test_the_server_lets_answers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short answer does not wait for the end of a long one, and nobody's answer changes."""
    monkeypatch.setattr(turns, "QUANTUM", 0.05)
    long, short = "x" * 400 + "!", "short!"
    for cache, patient in ((100_000, False), (0, True)):
        engine = Scripted(lambda text: long if "long" in text else short, seconds=0.003)
        session = Session(engine, prompt_cache=cache)
        with serving(session, turns=True) as (url, service):
            ai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            ended: dict[str, tuple[float, str]] = {}

            def ask(what: str, ai: openai.OpenAI = ai, ended: dict[str, tuple[float, str]] = ended) -> None:
                messages = [{"role": "user", "content": f"{what} {'y' * 100}"}]
                given = ai.chat.completions.create(model="tiny", messages=messages, max_tokens=500)  # type: ignore[arg-type,list-item]
                ended[what] = time.monotonic(), given.choices[0].message.content or ""

            threads = [threading.Thread(target=ask, args=(what,)) for what in ("long", "short 1", "short 2")]
            threads[0].start()
            while service.worker.running == 0:
                time.sleep(0.01)
            for thread in threads[1:]:
                thread.start()
            for thread in threads:
                thread.join()
            assert {k: text for k, (_, text) in ended.items()} == {"long": long, "short 1": short, "short 2": short}
            waited = max(ended["short 1"][0], ended["short 2"][0]) > ended["long"][0]
            assert waited is patient and service.worker.running == 0
            if not patient:
                # three prompts, their answers, an end each, and no more
                assert engine.evaluated == 3 + len(long) + 2 * len(short)
