"""A Session that cannot answer wrongly in silence: second uses, faults, ends, in both engines."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_engines import artifacts, path

from sampan import runtime
from sampan.errors import InputError
from sampan.runtime import Chunk, Options, Sampling, Session

ONE, OTHER = "The capital of France", "Please work out 2 + 38"
__all__ = ["artifacts", "path"]  # fixtures of the tests here


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    with opened(path) as session:
        yield session


def opened(path: Path) -> Session:
    return runtime.open(path, runtime.EngineOptions(context=256, threads=1, kv="f32"))


def answer(session: Session, prompt: str, n: int = 12) -> str:
    return session.generate(prompt, Options(max_tokens=n, seed=0))


def alone(path: Path, prompt: str) -> str:
    with opened(path) as session:
        return answer(session, prompt)


def test_two_streams_take_turns(path: Path, session: Session) -> None:
    a, b = (session.stream(p, Options(max_tokens=12, seed=0)) for p in (ONE, OTHER))
    found = ["", ""]
    for _ in range(20):
        for n, stream in enumerate((a, b)):
            found[n] += next(stream, Chunk()).text
    assert found == [alone(path, ONE), alone(path, OTHER)]


def test_logits_in_the_middle_of_a_stream(path: Path, session: Session) -> None:
    tokens = session.tokenize("One, two, three, four")
    wanted = session.logits(tokens)
    stream = session.stream(ONE, Options(max_tokens=12, seed=0))
    found = next(stream).text
    np.testing.assert_allclose(session.logits(tokens), wanted, atol=1e-4)
    assert found + stream.read().text == alone(path, ONE)


def test_a_stream_in_the_middle_of_slices(session: Session) -> None:
    tokens = (session.tokenize("One, two, three, four, five and six. ") * 20)[:200]
    wanted = session.logits(tokens)
    parts = []
    for part in session.logit_slices(tokens):
        parts.append(part.copy())
        answer(session, ONE, 2)
    np.testing.assert_allclose(np.concatenate(parts), wanted, atol=1e-3)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True])
def test_a_fault_inside_evaluate(
    error: type[BaseException], after: bool, path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the engine has done its work, or behind it: the next answer is right."""
    engine, evaluate, calls = session._engine, session._engine.evaluate, []

    def failing(tokens: Any, wanted: int) -> Any:
        calls.append(len(tokens))
        if len(calls) == 4 and not after:
            raise error
        logits = evaluate(tokens, wanted)
        if len(calls) == 4:
            raise error
        return logits

    monkeypatch.setattr(engine, "evaluate", failing)
    with pytest.raises(error):
        answer(session, ONE)
    assert answer(session, ONE) == alone(path, ONE)


def test_threads_take_turns(path: Path, session: Session) -> None:
    found: dict[str, str] = {}
    threads = [threading.Thread(target=lambda p=p: found.update({p: answer(session, p)})) for p in (ONE, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {p: alone(path, p) for p in (ONE, OTHER)}


def test_any_order_of_calls_gives_what_each_gives_alone(path: Path) -> None:
    """Random prompts, streams left in the middle, logits: against a fresh session for each."""
    rng = np.random.default_rng(3)
    prompts = [ONE, OTHER, ONE + " and", "Hello"]
    wanted = {p: alone(path, p) for p in prompts}
    with opened(path) as session:
        for _ in range(12):
            prompt = prompts[rng.integers(len(prompts))]
            kind = rng.integers(3)
            if kind == 0:
                next(session.stream(prompt, Options(max_tokens=4)))
            elif kind == 1:
                session.logits(session.tokenize(prompt))
            else:
                assert answer(session, prompt) == wanted[prompt]


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_logits_that_are_no_numbers(value: float, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = session._engine.evaluate
    monkeypatch.setattr(session._engine, "evaluate", lambda t, w: np.full_like(evaluate(t, w), value))
    said = r"the model computed -?(nan|inf) in place of a number behind token \d+, so no answer can be chosen; "
    with pytest.raises(InputError, match=said + "the cache is f32, so the weights are to blame"):
        answer(session, ONE)
    monkeypatch.setattr(session._engine, "kv", "f16")
    with pytest.raises(InputError, match=said + "a likely cause is its f16 cache, .*: try --kv f32"):
        answer(session, ONE)


def test_after_close_everything_says_so(session: Session) -> None:
    stream = session.stream(ONE, Options(max_tokens=4))
    next(stream)
    session.close()
    session.close()
    calls: list[Callable[[], object]] = [
        lambda: session.tokenize("x"), lambda: session.detokenize([1]), lambda: session.logits([1]),
        lambda: answer(session, ONE), lambda: session.vocab, lambda: session.context, session.take_experts,
        lambda: list(stream),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match="this Session is closed; open the artifact again"):
            call()


def test_why_an_answer_ended(session: Session) -> None:
    """Each stream says it of itself, and only once it has ended."""
    full = session.stream([300] * 250, Options(max_tokens=100, sampling=Sampling(temperature=5.0), seed=0))
    short = session.stream(ONE, Options(max_tokens=2, seed=0))
    next(full)
    assert (full.finish_reason, short.finish_reason) == (None, None)
    list(short)
    list(full)
    assert (full.finish_reason, short.finish_reason) == ("context", "length")
    assert list(full) == [] and full.finish_reason == "context"


def test_an_answer_that_the_model_ended(artifacts: dict[str, Path]) -> None:
    for name in ("gguf", "onnx"):
        with opened(artifacts[name]) as session:
            stream = session.chat([{"role": "user", "content": "2 + 2"}], options=Options(max_tokens=60, seed=0))
            answer = stream.read()
            assert stream.finish_reason == answer.finish_reason == "stop"
            assert session._engine.is_end(answer.tokens[-1]) and stream.usage == answer.usage


def test_what_is_refused_at_once(session: Session) -> None:
    with pytest.raises(InputError, match="the seed -1 is negative; give 0 or more"):
        session.stream(ONE, Options(seed=-1))
    with pytest.raises(InputError, match="token ids from 0 to"):
        session.detokenize([session.vocab])
    with pytest.raises(InputError, match=r"the text has half a character, \\udce9 at character 1; decode it with"):
        session.tokenize("x\udce9")
    assert session.logits(np.array([1, 2])).shape == (2, session.vocab), "arrays are fine"


def test_without_weights_nothing_is_computed(path: Path) -> None:
    with runtime.open(path, runtime.EngineOptions(vocabulary_only=True)) as session:
        assert session.tokenize(ONE)
        with pytest.raises(InputError, match="opened with vocabulary_only, so it has no weights to compute with"):
            session.stream(ONE)


@pytest.mark.parametrize("threads", [0, -1, 513, 10**20])
def test_threads_that_no_engine_can_start(threads: int, path: Path) -> None:
    """Some of them end the process in llama.cpp, or are a fault inside ONNX Runtime's bindings."""
    with pytest.raises(InputError, match=f"^threads: expected 1 to 512, found {threads}$"):
        runtime.open(path, runtime.EngineOptions(threads=threads))


def test_more_context_than_the_model_was_made_for(path: Path) -> None:
    with pytest.raises(InputError, match="a context of 100000 tokens cannot be had, since the model was made for 1 to"):
        runtime.open(path, runtime.EngineOptions(context=100_000))


def test_a_dropped_session_frees_its_model(path: Path) -> None:
    session = opened(path)
    engine: Any = session._engine
    del session
    gc.collect()
    assert (engine._model if hasattr(engine, "_model") else engine._session) is None


def test_the_interpreter_ends_with_an_open_session(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sampan import runtime; s = runtime.open(Path(sys.argv[1]));"
        "g = s.stream('Hi'); next(g)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_interpreter_ends_while_a_thread_streams(path: Path) -> None:
    code = """
import sys, threading
from pathlib import Path
from sampan import runtime
session, going = runtime.open(Path(sys.argv[1])), threading.Event()
def stream():
    while True:
        for _ in session.stream("Hi"):
            going.set()
threading.Thread(target=stream, daemon=True).start()
going.wait()
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
