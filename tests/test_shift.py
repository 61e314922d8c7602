"""A full context that goes on: what is left is what was kept, evaluated at its new places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from both_engines import artifacts, path
from conftest import run_cli
from noise_engine import Noise

from sampan import runtime
from sampan.errors import ContextLengthError, InputError
from sampan.runtime import EngineOptions, Options, Sampling, Session
from sampan.runtime.generate import overflow

__all__ = ["artifacts", "path"]  # fixtures of the tests here
SMALL = EngineOptions(threads=1, context=48, kv="f32")
TEXT = "The kettle was lost, and the sailor was kind. The fox came back."


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 5])
def test_behind_a_shift_logits_are_those_of_the_kept_tokens_alone(path: Path, keep: int) -> None:
    """By the definition, in a session of its own: the first `keep`, and the younger half of the others."""
    with runtime.open(path, SMALL) as session, runtime.open(path, SMALL) as plain:
        prompt = session.tokenize(TEXT)
        assert keep < len(prompt) < 30
        # no end is chosen
        ends = {t: -1e4 for t in range(session.vocab) if session._engine.is_end(t)}
        options = Options(70, Sampling(1.0, logit_bias=ends), 3, logprobs=0, shift=keep)
        chunks = list(session.stream(prompt, options))
        assert chunks[-1].finish_reason == "length" and len(chunks) == 70
        held, shifts = list(prompt), 0
        for chunk in chunks:
            if len(held) == 48:
                rest = held[keep:]
                held = held[:keep] + rest[(len(rest) + 1) // 2 :]
                shifts += 1
                assert chunk.dropped == (len(rest) + 1) // 2
            else:
                assert chunk.dropped == 0
            row = plain.logits(held)[-1].astype(np.float64)
            own = row - row.max() - np.log(np.exp(row - row.max()).sum())
            assert chunk.token is not None and chunk.logprob == pytest.approx(own[chunk.token], abs=2e-3)
            held.append(chunk.token)
        usage = chunks[-1].usage
        assert usage is not None and shifts >= 2
        assert usage.dropped_tokens == sum(c.dropped for c in chunks) and usage.completion_tokens == 70
        assert usage.prompt_tokens == len(prompt)


def test_without_a_shift_a_full_context_is_the_end() -> None:
    engine = Noise()
    engine.context = 32
    with Session(engine) as session:
        full = session.stream([1] * 20, Options(None, Sampling(1.0, logit_bias={256: -1e4, 257: -1e4}), 0)).read()
        assert full.finish_reason == "context" and len(full.tokens) == 12 and full.usage.dropped_tokens == 0
        with pytest.raises(ContextLengthError):
            session.stream([1] * 32)


def test_a_prompt_that_is_too_long_is_shifted_too() -> None:
    engine = Noise()
    engine.context = 32
    with Session(engine) as session:
        prompt = list(range(1, 101))
        answer = session.stream(prompt, Options(1, shift=4)).read()
        assert session._cached == [1, 2, 3, 4, *range(77, 101)]  # 96, 48, 24 behind the first 4
        assert (answer.usage.prompt_tokens, answer.usage.dropped_tokens) == (100, 72)
        assert session.stream([1] * 31, Options(1, shift=4)).read().usage.dropped_tokens == 0
        for shift, message in ((-1, "shift: expected 0 or more"), (31, "shift: expected at most 30 tokens to keep")):
            with pytest.raises(InputError, match=message):
                session.stream(prompt, Options(1, shift=shift))
        assert session.stream(prompt, Options(3, shift=30)).read().usage.dropped_tokens > 0


def test_an_answer_without_a_limit_goes_on_until_it_ends() -> None:
    engine = Noise()
    engine.context = 32
    with Session(engine) as session:
        answer = session.stream([1, 2], Options(None, Sampling(1.0), 1, shift=1)).read()
        assert answer.finish_reason == "stop" and len(answer.tokens) > 100 and answer.usage.dropped_tokens > 60


@pytest.mark.parametrize("context", range(3, 40))
def test_an_overflow_leaves_room_for_one_and_keeps_what_it_can(context: int) -> None:
    for keep in range(context - 1):
        assert overflow(context - 1, keep, context) == 0
        for tokens in (context, context + 1, 7 * context):
            left = tokens - overflow(tokens, keep, context)
            assert keep < left < context


def test_the_command_says_it_once(gguf: Callable[[str, str], Path]) -> None:
    model = str(gguf("trained", "q8_0"))
    base = ["run", model, "Hi", "--raw", "--threads", "1", "--context", "32", "--max-tokens", "90", "--seed", "4"]
    base += ["--top-k", "0", "--top-p", "1", "--temperature", "5"]
    done = run_cli(*base, "--shift", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    told = [x for x in lines if x.startswith("the context of 32 tokens was full: --shift dropped ")]
    assert len(told) == 1 and told[0].endswith(" older ones")
    cut = run_cli(*base)
    assert cut.stderr == "cut: the context of 32 tokens is full; --context sets another\n"
