"""Chunks, stop strings, reasons, limits and cancelling, in both engines, against plain loops over logits."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_engines import artifacts, path

from sampan import runtime
from sampan.errors import ContextLengthError, InputError
from sampan.runtime import Options, Sampling, Session
from sampan.runtime.markers import StopStrings

__all__ = ["artifacts", "path"]  # fixtures of the tests here
ASK = [{"role": "user", "content": "What is the capital of Peru?"}]
GREEDY = Sampling()


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    with opened(path) as session:
        yield session


def opened(path: Path, context: int = 256) -> Session:
    return runtime.open(path, runtime.EngineOptions(context=context, threads=1, kv="f32"))


def test_chunks_are_tokens_with_their_text_and_logprobs(session: Session) -> None:
    """Against a loop over `Session.logits`."""
    prompt = session.tokenize("The capital of France")
    chunks = list(session.stream(prompt, Options(max_tokens=6, sampling=GREEDY, logprobs=3)))
    tokens = list(prompt)
    for chunk in chunks:
        logits = session.logits(tokens)[-1].astype(np.float64)
        logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert chunk.token == logits.argmax() == chunk.top[0].token
        assert chunk.logprob == chunk.top[0].logprob == pytest.approx(logprobs[chunk.token], abs=1e-3)
        assert [c.logprob for c in chunk.top] == pytest.approx(np.sort(logprobs)[:-4:-1], abs=1e-3)
        assert [c.raw for c in chunk.top] == [session._engine.piece(c.token) for c in chunk.top]
        tokens.append(chunk.token)
    text = "".join(c.text for c in chunks)
    assert text == session.detokenize([c.token for c in chunks if c.token is not None])
    assert text == b"".join(c.raw for c in chunks).decode(errors="replace")
    assert [c.finish_reason is None for c in chunks] == [True] * (len(chunks) - 1) + [False]


def test_without_logprobs_none_are_computed(session: Session) -> None:
    assert all(c.logprob is None and c.top == () for c in session.stream("Hi", Options(max_tokens=3)))


def test_all_ways_to_ask_are_one(session: Session) -> None:
    options = Options(max_tokens=20, sampling=GREEDY)
    text = session.generate(ASK, options)
    assert text == session.chat(ASK, options=options).read().text
    assert text == session.generate(session.tokenize_chat(ASK), options)
    assert text == "".join(c.text for c in session.stream(session.render_chat(ASK), options))


def test_usage_counts_tokens_and_seconds(session: Session) -> None:
    prompt = session.tokenize("The capital of France is")
    began = time.perf_counter()
    first = session.stream(prompt, Options(max_tokens=5, sampling=Sampling(logit_bias={7: 1e4}))).read()
    took = time.perf_counter() - began
    usage = first.usage
    assert first.tokens == (7,) * 5
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (len(prompt), 0, 5)
    assert usage.prefill_seconds > 0 and usage.decode_seconds > 0
    assert usage.prefill_seconds + usage.decode_seconds <= took and 0 < usage.load_seconds == session.load_seconds
    assert usage.decode_rate == pytest.approx(4 / usage.decode_seconds)
    session.logits([3, 4])  # something else is cached
    session.generate(prompt, Options(max_tokens=1))
    again = session.stream([*prompt, 5, 6], Options(max_tokens=1)).read().usage
    assert again.cached_tokens == len(prompt)


def test_time_that_the_reader_takes_is_not_counted(session: Session) -> None:
    stream = session.stream("Hi", Options(max_tokens=4, sampling=Sampling(logit_bias={7: 1e4})))
    for _ in stream:
        time.sleep(0.1)
    assert stream.usage is not None and stream.usage.decode_seconds < 0.2


# Stop strings


def stopped(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    filter_ = StopStrings(stops)
    out = []
    for piece in pieces:
        out.append(filter_.feed(piece))
        if filter_.hit:
            return out, True
    return [*out, filter_.close()], False


@pytest.mark.parametrize(
    ("text", "stops", "shown", "hit"),
    [
        ("one two three", ["two"], "one ", True),
        ("one two three", ["tw", "two three"], "one ", True),
        ("aaab", ["aab"], "a", True),
        ("abab ababc", ["ababc"], "abab ", True),
        ("ends with a half: sto", ["stop"], "ends with a half: sto", False),
        ("x\n\nUser: y", ["\nUser:", "\n\nAssistant:"], "x\n", True),
        ("bc abcd", ["abcd", "c a"], "b", True),
        ("nothing", [], "nothing", False),
        ("中文。停止", ["。停"], "中文", True),
    ],
)
def test_stop_strings_in_any_pieces(text: str, stops: list[str], shown: str, hit: bool) -> None:
    rng = np.random.default_rng(1)
    cuts = [range(1, len(text)), [], *(sorted(rng.choice(len(text), 3)) for _ in range(20))]
    for cut in cuts:
        edges = [0, *(int(c) for c in cut), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
        out, found = stopped(pieces, stops)
        assert ("".join(out), found) == (shown, hit)


def test_random_stop_strings_against_a_search_in_the_whole() -> None:
    rng = np.random.default_rng(2)
    for _ in range(500):
        text = "".join(rng.choice(list("ab"), 12))
        stops = ["".join(rng.choice(list("ab"), rng.integers(1, 5))) for _ in range(2)]
        out, hit = stopped(list(text), stops)
        # read letter by letter: the first to be complete ends it
        ends = [n for n in range(1, 13) if any(text[:n].endswith(s) for s in stops)]
        wanted = text[: min(text[: ends[0]].find(s) for s in stops if s in text[: ends[0]])] if ends else text
        assert ("".join(out), hit) == (wanted, bool(ends))


def test_an_answer_ends_in_front_of_a_stop_string(session: Session) -> None:
    whole = session.generate(ASK, Options(max_tokens=20, sampling=GREEDY))
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    stream = session.stream(ASK, Options(max_tokens=20, sampling=GREEDY, stop=middle))
    answer = stream.read()
    assert answer.text == whole[: whole.find(middle)] and answer.finish_reason == "stop_string"
    assert session.generate(ASK, Options(max_tokens=20, sampling=GREEDY, stop=["\0", whole + "x"])) == whole


# Limits and cancelling


def test_a_prompt_without_room_is_refused_before_work(path: Path) -> None:
    with opened(path, 32) as session:
        session._engine.evaluate = None  # type: ignore[assignment] - nothing may be computed
        for n, words in ((32, "context 32, which leaves none for an answer; "), (40, "context 32; ")):
            with pytest.raises(ContextLengthError, match=f"the prompt has {n} tokens, and the {words}--context gives"):
                session.stream([5] * n)


def test_no_limit_goes_on_until_the_context_is_full(path: Path) -> None:
    with opened(path, 32) as session:
        endless = Sampling(logit_bias={7: 1e4})
        answer = session.stream([5] * 20, Options(max_tokens=None, sampling=endless)).read()
        assert (len(answer.tokens), answer.finish_reason) == (12, "context")
        exact = session.stream([5] * 20, Options(max_tokens=12, sampling=endless)).read()
        assert (len(exact.tokens), exact.finish_reason) == (12, "length")


def test_cancelled_between_tokens(session: Session) -> None:
    stream = session.stream("Hi", Options(max_tokens=100, sampling=Sampling(logit_bias={7: 1e4})))
    first = next(stream)
    stream.cancel()
    (last,) = stream
    assert first.token == 7 and (last.token, last.finish_reason) == (None, "cancelled")
    assert stream.usage is not None and stream.usage.completion_tokens == 1


def test_cancelled_from_another_thread(session: Session) -> None:
    stream = session.stream("Hi", Options(max_tokens=None, sampling=Sampling(logit_bias={7: 1e4})))
    going = threading.Event()

    def cancel() -> None:
        going.wait()
        stream.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    found = []
    for chunk in stream:
        found.append(chunk.finish_reason)
        if len(found) == 3:
            going.set()
            thread.join()
    assert found == [None, None, None, "cancelled"]


def test_cancelled_inside_of_a_prompt(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two parts of it; what was evaluated of it stays cached."""
    engine: Any = session._engine
    monkeypatch.setattr(engine, "batch", 16)
    prompt = list(range(10, 110))
    stream = session.stream(prompt, Options(max_tokens=5))
    evaluate, calls = engine.evaluate, []

    def counting(tokens: Any, wanted: int) -> Any:
        calls.append(len(tokens))
        if len(calls) == 2:
            stream.cancel()
        return evaluate(tokens, wanted)

    monkeypatch.setattr(engine, "evaluate", counting)
    answer = stream.read()
    assert (answer.finish_reason, answer.tokens, calls) == ("cancelled", (), [16, 16])
    assert session.stream(prompt, Options(max_tokens=1)).read().usage.cached_tokens == 32


def test_a_closed_stream_has_no_answer(session: Session) -> None:
    stream = session.stream("Hi")
    next(stream)
    stream.close()
    with pytest.raises(InputError, match="this stream was closed before its end; ask again"):
        stream.read()
    assert stream.finish_reason is None


def test_a_random_seed_is_told_and_gives_the_same_again(session: Session) -> None:
    hot = Sampling(temperature=2.0)
    one, two = (session.stream("Hi", Options(max_tokens=12, sampling=hot)) for _ in range(2))
    assert one.seed != two.seed
    again = session.stream("Hi", Options(max_tokens=12, sampling=hot, seed=one.seed))
    assert one.read().tokens == again.read().tokens != two.read().tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(max_tokens=0), "max_tokens: expected 1 or more, found 0"),
        (Options(stop=("a", "")), "stop: expected texts of at least one character, found an empty one"),
        (Options(logprobs=-1), "logprobs: expected 0 or more, found -1"),
        (Options(sampling=Sampling(temperature=-1)), "temperature: expected 0 or more, found -1"),
    ],
)
def test_options_that_mean_nothing(options: Options, message: str, session: Session) -> None:
    with pytest.raises(InputError) as e:
        session.stream("Hi", options)
    assert str(e.value) == message


@pytest.mark.parametrize("family", ["", "hybrid "])
def test_both_engines_choose_the_same_tokens(family: str, artifacts: dict[str, Path]) -> None:
    """From logits in float32 that differ in their last digits."""
    found = []
    for engine in ("gguf", "onnx"):
        with opened(artifacts[family + engine]) as session:
            prompts = (ASK, [{"role": "user", "content": "17 + 25 = ?"}])
            kinds = (GREEDY, Sampling(0.7, 20, 0.9), Sampling(1.0, min_p=0.05, repetition_penalty=1.1))
            found.append([session.chat(p, options=Options(24, s, 3)).read().tokens for p in prompts for s in kinds])
    assert found[0] == found[1]
