"""Conversations that outgrow their context lose whole turns: in Python, at a terminal, in a pipe and in the server."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import tiny
from conftest import to_gguf
from pty_shell import Terminal
from server_engine import Scripted, serving

from sampan.errors import ContextLengthError
from sampan.runtime import Options, Session
from sampan.runtime.recent import FULL, ROOMY, Messages, recent

SYSTEM = [{"role": "system", "content": "s" * 10}]
PERU, LIMA = "What is the capital of Peru?", "The capital of Peru is Lima."


def count(messages: Messages) -> int:
    return sum(len(m["content"]) for m in messages)


def turns(*sizes: int) -> list[dict[str, str]]:
    """A question of one character each, and an answer of the rest."""
    pairs = (({"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * (n - 1)}) for n in sizes)
    return list(itertools.chain.from_iterable(pairs))


def kept(messages: Messages, context: int) -> Messages:
    return recent(messages, count(messages), context, count)


def test_the_oldest_turns_go_and_the_system_message_stays() -> None:
    talk = [*SYSTEM, *turns(20, 20, 20, 20)]
    assert kept(talk, 103) == talk, "90 of 103 are less than seven eighths"
    assert kept(talk, 100) == [*SYSTEM, *talk[7:]], "at least half of the context goes: three turns of 20"
    assert kept(turns(20, 20, 20, 40), 100) == turns(40)
    calls = [{"role": "tool", "content": "t" * 30}, {"role": "assistant", "content": "a" * 30}]
    assert kept([*turns(20), *calls, *turns(20)], 100) == turns(20), "calls and their results go with their turn"


def test_the_last_turn_stays_whatever_its_size() -> None:
    talk = [*SYSTEM, *turns(20, 300)]
    assert kept(talk, 100) == [*SYSTEM, *talk[3:]]
    assert kept(talk[:1] + talk[3:], 100) == talk[:1] + talk[3:], "there is nothing else that could go"
    asked = [{"role": "user", "content": "q" * 50}] * 2
    assert kept(asked, 100) == asked, "two messages of a user in a row are one turn"


@pytest.mark.parametrize("size", [1, 3, 7, 13, 24])
def test_a_conversation_that_grows_keeps_its_beginning_for_a_while(size: int) -> None:
    """What is left fits, has room, and begins elsewhere only once in half a context."""
    beginnings: list[int] = []
    for n in range(1, 120):
        talk = [*SYSTEM, *turns(*[size + 1] * n)]
        left = kept(talk, 100)
        assert left[:1] == SYSTEM and list(left[1:]) == talk[len(talk) - len(left) + 1 :]
        assert count(left) <= (ROOMY if len(left) < len(talk) else FULL) * 100
        beginnings.append(len(talk) - len(left))
    assert beginnings == sorted(beginnings)
    moves = len(set(beginnings)) - 1
    assert moves <= (119 * (size + 1)) / 50, "it moves by half a context"


def test_few_texts_are_counted() -> None:
    """A stranger's conversation of 20,000 messages is rendered a few times, and hardly ever whole."""
    talk, counted = turns(*[4] * 10_000), list[int]()

    def counting(messages: Messages) -> int:
        counted.append(len(messages))
        return count(messages)

    left = recent(talk, count(talk), 100, counting)
    assert 0 < count(left) <= 75 and len(counted) < 15 and max(counted) < 100


def long_talk() -> list[dict[str, str]]:
    pairs = (
        [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "x" * 10}] for i in range(16)
    )
    return [*itertools.chain.from_iterable(pairs), {"role": "user", "content": "last"}]


def session(context: int = 256) -> Session:
    engine = Scripted(lambda text: text.split("]")[1].partition("\n")[0])  # it says what stands first
    engine.context = context
    return Session(engine)


def test_a_session_with_a_shift_leaves_turns_out_and_tells() -> None:
    with session() as s:
        talk = long_talk()
        whole = len(s.tokenize_chat(talk))
        with pytest.raises(ContextLengthError):
            s.chat(talk)
        answer = s.chat(talk, options=Options(20, shift=0)).read()
        left = s.recent(talk)
        assert (
            answer.text == left[0]["content"]
            and left == talk[-len(left) :]
            and left[0]["role"] == "user"
            and len(left) > 3
        )
        assert answer.usage.prompt_tokens == whole
        assert answer.usage.dropped_tokens == whole - len(s.tokenize_chat(left)) > 0
        chunks = list(s.chat(talk, options=Options(20, shift=0)))
        assert chunks[0].dropped == answer.usage.dropped_tokens and not any(c.dropped for c in chunks[1:])
        again = [*talk, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "more"}]
        usage = s.chat(again, options=Options(20, shift=0)).read().usage
        assert usage.cached_tokens > usage.prompt_tokens - usage.dropped_tokens - 40, "it begins as the last one did"


def test_the_server_goes_on_where_it_is_told_to() -> None:
    talk = long_talk()
    with serving(session()) as (url, _):
        ai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError) as e:
            ai.chat.completions.create(model="tiny", messages=talk)
        assert e.value.code == "context_length_exceeded"
    with serving(session(), shift=4) as (url, _):
        ai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        given = ai.chat.completions.create(model="tiny", messages=talk)
        assert given.choices[0].message.content.startswith("question ")
        assert given.usage.model_extra["dropped_tokens"] > 0
        short = ai.chat.completions.create(model="tiny", messages=talk[-1:])
        assert short.choices[0].message.content == "last" and "dropped_tokens" not in short.usage.model_extra


def test_an_answer_that_nobody_bounds_ends_in_a_server_that_shifts() -> None:
    engine = Scripted(lambda text: "x" * 5000)
    engine.context = 64
    with serving(Session(engine), shift=4) as (url, _):
        ai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        given = ai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "?"}])
        assert given.choices[0].finish_reason == "length" and given.usage.completion_tokens == 64
        asked = {"model": "tiny", "prompt": "?", "max_tokens": 100}
        text = ai.completions.create(**asked)
        assert text.usage.completion_tokens == 100 and text.usage.model_extra["dropped_tokens"] > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to_gguf(tiny.FIXTURE, out := tmp_path_factory.mktemp("recent") / "m.gguf", "q8_0")
    return out


def test_a_conversation_at_a_terminal_goes_on(model: Path) -> None:
    with Terminal("run", str(model), "--temperature", "0", "--context", "62", "--threads", "1") as t:
        t.until(t.prompt)
        shown = [t.say(PERU) for _ in range(6)]
        assert all(LIMA in s for s in shown), "never stuck, and what is kept is a conversation"
        told = [s for s in shown if s.startswith("the context of 62 tokens was full: from here on the ")]
        assert 2 <= len(told) <= 3 and "oldest messages are left out\n" in told[0]
        assert not any("error" in s for s in shown) and t.end() == 0


def test_a_conversation_in_a_pipe_goes_on(model: Path) -> None:
    asked = "\n".join([PERU] * 6) + "\n"
    code = "from sampan.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(model), "--chat", "--temperature", "0", "--context", "62"],
        input=asked, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == f"{LIMA}\n" * 6
    assert 2 <= done.stderr.count("oldest messages are left out\n") <= 3
