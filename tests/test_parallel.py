"""Several answers at once by llama.cpp: each is what it is alone, in whatever company, and nobody holds up another."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from both_engines import artifacts
from raw_http import answered, exchange, request
from server_engine import serving
from test_lanes import together
from test_serve import client
from test_serve_command import Served, start

from sampan import runtime
from sampan.errors import InputError
from sampan.runtime import EngineOptions, Options, Sampling, Session, lanes
from sampan.runtime.engines._lanes import Lanes, Part
from sampan.runtime.machine import Memory
from sampan.runtime.memory import need

__all__ = ["artifacts", "start"]  # fixtures of the tests here
ROOM = EngineOptions(context=256, threads=1, kv="f32")
NO_END = {2033: -1e4, 2035: -1e4}
TOKENS = 64
MARGIN = 0.01  # between the two most probable tokens: the rounding of a batch is far below it


@pytest.fixture(scope="module", params=["gguf", "hybrid gguf"])
def path(request: pytest.FixtureRequest, artifacts: dict[str, Path]) -> Path:
    return artifacts[request.param]


def greedy(tokens: int = TOKENS) -> Options:
    return Options(tokens, Sampling(logit_bias=NO_END), logprobs=2)


@contextlib.contextmanager
def opened(path: Path, options: EngineOptions) -> Iterator[list[Session]]:
    with runtime.open(path, options) as session, contextlib.ExitStack() as stack:
        yield [session, *map(stack.enter_context, lanes.beside(session))]


def alone(path: Path, options: EngineOptions, count: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Prompts of different lengths whose greedy answers do not hang on rounding → these, each from an empty cache."""
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    with runtime.open(path, options) as session:
        for seed in range(200):
            prompt = np.random.default_rng(seed).integers(0, 1500, 5 + 37 * (seed % 4)).tolist()
            chunks = list(session.stream(prompt, greedy()))
            if min(c.top[0].logprob - c.top[1].logprob for c in chunks if c.top) > MARGIN:
                found[tuple(prompt)] = tuple(c.token for c in chunks if c.token is not None)
            if len(found) == count:
                return found
    raise AssertionError("too few prompts without nearly equal tokens")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers of tokens of each lane, of every call of llama.cpp from now on."""
    seen: list[list[int]] = []
    packed = Lanes._packed

    def note(self: Lanes) -> dict[Any, Part]:
        parts = packed(self)
        seen.append([len(p.tokens) for p in parts.values()])
        return parts

    monkeypatch.setattr(Lanes, "_packed", note)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kv", ["f32", "f16"])  # a buffer for each lane, and one for all
def test_answers_in_company_are_those_alone(path: Path, kv: Any, calls: list[list[int]]) -> None:
    """Four lanes; each answers three prompts, which begin and end at different times."""
    options = replace(ROOM, kv=kv)
    wanted = alone(path, options, 12)
    calls.clear()
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    prompts = list(wanted)

    def answer(n: int, session: Session) -> None:
        for m, prompt in enumerate(prompts[n::4]):
            length = TOKENS - 11 * ((n + m) % 4)
            found[prompt] = tuple(t for c in session.stream(prompt, greedy(length)) if (t := c.token) is not None)

    with opened(path, replace(options, sequences=4)) as sessions:
        threads = [threading.Thread(target=answer, args=(n, s)) for n, s in enumerate(sessions)]
        for thread in threads:
            thread.start()
            time.sleep(0.01)
        for thread in threads:
            thread.join()
    assert found == {p: answer[: len(found[p])] for p, answer in wanted.items()}
    assert max(map(len, calls)) == 4, "they were computed together"
    assert len(calls) < sum(map(len, found.values())) / 2


def test_lanes_do_not_touch_each_other(path: Path) -> None:
    """What one forgets, keeps as a state or takes back, leaves the others' caches as they are."""
    tokens = [5, 6, 7, 8, 9]
    with opened(path, replace(ROOM, sequences=3)) as sessions:
        one, two, three = (s._engine for s in sessions)
        first = one.evaluate(tokens, 1).copy()
        two.evaluate(tokens[::-1], 0)
        two.keep(2)  # a hybrid forgets all
        two.keep(0)
        state = np.empty(one.state_bytes(), np.uint8)
        one.copy_state(state)
        three.restore(len(tokens), state)
        np.testing.assert_allclose(two.evaluate(tokens, 1), first, atol=1e-4)
        after = one.evaluate([3], 1)
        np.testing.assert_allclose(three.evaluate([3], 1), after, atol=1e-4)
        np.testing.assert_allclose(two.evaluate([3], 1), after, atol=1e-4)
        assert np.abs(after - first).max() > 0.1, "a token later they are others"
        with pytest.raises(InputError, match="does not take this state"):
            two.restore(9, state)
        np.testing.assert_allclose(one.evaluate([4], 1), three.evaluate([4], 1), atol=1e-4)


def test_whichever_lane_closes_last_frees_the_model(artifacts: dict[str, Path]) -> None:
    session = runtime.open(artifacts["gguf"], replace(ROOM, sequences=2))
    (other,) = lanes.beside(session)
    wanted = session.generate([5, 6, 7], greedy(8))
    engine: Any = other._engine
    session.close()
    assert other.generate([5, 6, 7], greedy(8)) == wanted
    session.close()
    other.close()
    assert engine._ctx is None
    engine.close()


def test_what_cannot_have_lanes_is_refused(artifacts: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"sequences: expected 1: only llama.cpp computes several together, found 2"):
        runtime.open(artifacts["onnx"], EngineOptions(sequences=2))
    for options in (EngineOptions(sequences=0), EngineOptions(sequences=2, record_experts=True)):
        with pytest.raises(InputError, match="sequences: expected 1 or more, and 1 where experts"):
            runtime.open(artifacts["gguf"], options)
    with runtime.open(artifacts["onnx"], EngineOptions(context=64)) as session:
        assert lanes.beside(session) == []


def test_grammars_and_kept_states_are_shared(artifacts: dict[str, Path]) -> None:
    options = replace(ROOM, sequences=2, prompt_cache=100_000_000)
    with opened(artifacts["gguf"], options) as (one, two):
        assert one._words() is two._words()
        prompt = np.random.default_rng(0).integers(0, 1500, 90).tolist()
        wanted = one.stream(prompt, greedy(8)).read()
        one.stream(prompt[::-1], greedy(8)).read()
        other = two.stream(prompt, greedy(8)).read()
        assert (other.tokens, other.usage.cached_tokens) == (wanted.tokens, 89), "left on one lane, taken up on another"


def test_as_many_lanes_as_fit(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = artifacts["gguf"]
    assert need(path, 256, 4).cache == 4 * need(path, 256).cache
    for count in (1, 2, 3, 4):
        held = Memory(None, need(path, 4096, count).total, None, None)
        monkeypatch.setattr(lanes, "memory", lambda _, held=held: held)
        assert lanes.fitting(path, 4096, None) == count
    assert lanes.fitting(path, 4096, "f32") == 2, "twice the bytes"
    assert lanes.fitting(artifacts["onnx"], None, None) == 1
    (tmp_path / "x").write_bytes(b"GGUF of a kind")
    assert lanes.fitting(tmp_path / "x", None, None) == 1


def test_more_lanes_than_there_is_memory_for_are_refused(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights are mapped, so the system can drop them; caches it cannot."""
    path = artifacts["gguf"]
    free = Memory(None, need(path, 256, 3).cache, None, None)
    monkeypatch.setattr(lanes, "memory", lambda _: free)
    for kv, count in ((None, 3), ("q8_0", 5)):
        lanes.check(path, 256, kv, count)  # type: ignore[arg-type]
    for kv, count in ((None, 4), ("f32", 2), ("q8_0", 6)):
        with pytest.raises(InputError, match=rf"--parallel {count}: the caches of 256 tokens take .*, and .* are free"):
            lanes.check(path, 256, kv, count)  # type: ignore[arg-type]
    lanes.check(path, 4096, None, 1)  # a usual context is not looked at
    with pytest.raises(InputError, match=r"--context 8192: the cache of 8192 tokens takes .*; give a smaller --cont"):
        lanes.check(path, 8192, None, 1)
    for path in (artifacts["onnx"], tmp_path / "none"):
        lanes.check(path, None, None, 9)


# The server


def parallel(url: str) -> int:
    """What /health says."""
    told: int = answered(exchange(url, request("/health")))[2]["parallel"]
    return told


def ask(ai: openai.OpenAI, text: str, tokens: int, stream: bool) -> str:
    asked: dict[str, Any] = {"model": "tiny", "prompt": text, "max_tokens": tokens, "temperature": 0}
    asked["logit_bias"] = {str(k): -100 for k in NO_END}
    if not stream:
        return ai.completions.create(**asked).choices[0].text
    return "".join(c.choices[0].text for c in ai.completions.create(**asked, stream=True))


def test_the_server_answers_several_at_once(path: Path, calls: list[list[int]]) -> None:
    """Three lanes, nine clients, of whom three leave in the middle; nobody gets another's answer."""
    texts = [f"{'A tale of ' * (n % 3)}{n} ships and their captain" for n in range(12)]
    with runtime.open(path, ROOM) as session:
        biased = Options(24, Sampling(logit_bias=dict.fromkeys(NO_END, -100)))
        wanted = [session.generate(text, biased) for text in texts]
    with runtime.open(path, replace(ROOM, sequences=3)) as session, serving(session) as (url, service):
        ai = client(url)

        def some(n: int) -> None:
            for i in range(n, 12, 6):
                assert ask(ai, texts[i], 24, bool(i % 2)) == wanted[i]

        def leaves() -> None:
            for n in range(4):
                asked = {"model": "tiny", "prompt": texts[n], "max_tokens": 200, "stream": True}
                with client(url).completions.create(**asked) as events:
                    next(iter(events))

        calls.clear()
        together(*(lambda n=n: some(n) for n in range(6)), *[leaves] * 3)  # type: ignore[misc]
        deadline = time.monotonic() + 30
        while (service.worker.running or service.inside) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.worker.running == service.worker.waiting == service.inside == 0
        assert len(service.lanes._free) == 3 and not service.lanes._taken
        assert max(map(len, calls)) == 3
        assert parallel(url) == 3


def test_a_conversation_comes_back_to_its_lane(artifacts: dict[str, Path]) -> None:
    """Without room for anything but what the lanes hold, and though others asked in between."""
    talks: list[list[Any]] = [[{"role": "user", "content": f"{word} {word}?"}] for word in ("Who", "Why", "How")]
    asked, cached = list[int](), list[int]()
    with runtime.open(artifacts["gguf"], replace(ROOM, sequences=3)) as session, serving(session) as (url, _):
        for talk in [*talks, *reversed(talks), *talks]:
            given = client(url).chat.completions.create(model="tiny", messages=talk, max_tokens=6, temperature=0)
            talk.append({"role": "assistant", "content": given.choices[0].message.content})
            talk.append({"role": "user", "content": "And then?"})
            asked.append(given.usage.prompt_tokens)
            cached.append(given.usage.prompt_tokens_details.cached_tokens)
    before = [asked[2], asked[1], asked[0], asked[5], asked[4], asked[3]]
    assert all(c >= b for c, b in zip(cached[3:], before, strict=True)), (asked, cached)


def test_the_command_takes_as_many_as_are_asked_for(start: Callable[..., Served]) -> None:
    assert parallel(start("--context", "128", "--parallel", "2").url) == 2
    assert parallel(start("--context", "128").url) == 4, "a tiny model's fit"
