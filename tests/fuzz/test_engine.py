"""The demo app's engine, built with sanitizers, on damaged requests and models: it answers, and goes on.

`make android-sanitized` builds it. What once ended it stands in `requests.txt` and `tests/hostile/gguf`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from android_programs import BUILT, LAST, Engine, user
from fuzz import mutate

pytestmark = pytest.mark.slow
SEED = 1
REQUESTS, MODELS = 3000, 300  # cases of an everyday length
CORPUS = Path(__file__).with_name("requests.txt").read_bytes().splitlines()
SANITIZED = BUILT / "engine-sanitized"
CODES = {"no_model", "bad_request", "too_long", "template", "load", "memory", "internal"}
Gguf = Callable[[str, str], Path]


class Watched(Engine):
    """An engine whose sanitizers are listened to."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the engine
        super().__init__(program=str(SANITIZED), stderr=self.log.fileno())

    def check(self) -> None:
        """Raise what a sanitizer said."""
        self.log.seek(0)
        said = self.log.read().decode(errors="replace")
        for mark in ("Sanitizer", "runtime error:"):
            assert mark not in said, said[max(0, said.index(mark) - 200) :][:3000]

    def settle(self) -> None:
        """Read all events up to the answer of a request of our own; each is one that the protocol knows."""
        wanted = self.start("stats")
        while (event := self.event()) != event | {"event": "stats", "id": wanted}:
            assert event["event"] in (*LAST, "progress", "prompt", "text"), event
            assert event["event"] != "error" or (event["code"] in CODES and event["message"]), event


@pytest.fixture
def engine() -> Iterator[Watched]:
    if not SANITIZED.exists():
        assert not os.environ.get("CI"), f"{SANITIZED} is not built"
        pytest.skip("make android-sanitized builds it")
    with Watched() as e:
        try:
            yield e
        finally:
            e.log.close()


def test_requests(engine: Watched, gguf: Gguf) -> None:
    loaded = engine.ask("load", path=str(gguf("trained", "q4_0")), threads=1, context=256)
    assert loaded["event"] == "loaded"
    for case in range(REQUESTS):
        random = Random(f"requests {SEED} {case}")
        line = random.choice(CORPUS)
        try:
            line = mutate.text(random, json.loads(line)) if random.random() < 0.8 else mutate.data(random, line)
        except ValueError:  # a line of the corpus that is no JSON
            line = mutate.data(random, line)
        if b"quit" in line:
            continue
        engine.send(line + b"\n")
        try:
            engine.settle()
        except AssertionError:
            engine.check()
            raise AssertionError(f"case {case}: {line[:500]!r}") from None
    engine.check()


def test_models(engine: Watched, gguf: Gguf, tmp_path: Path) -> None:
    wholes = [gguf("trained", "q4_0").read_bytes(), gguf("trained-kimi", "q4_0").read_bytes()]
    heads = [whole.index(b"output_norm.weight") + 40 for whole in wholes]  # nearly all in front of the weights
    path, loads = tmp_path / "m.gguf", 0
    for case in range(MODELS):
        random = Random(f"models {SEED} {case}")
        whole, head = wholes[case % 2], heads[case % 2]
        start, end = (0, random.choice((64, 400, 2000))) if random.random() < 0.5 else (head - 4000, head)
        path.write_bytes(whole[:start] + mutate.data(random, whole[start:end]) + whole[end:])
        try:
            if engine.ask("load", path=str(path), threads=1, context=256)["event"] == "loaded":
                loads += 1
                engine.ask("chat", messages=user("What is the capital of France?"), max_tokens=3)
            engine.settle()
        except AssertionError:
            engine.check()
            raise AssertionError(f"case {case}") from None
    engine.check()
    assert 0 < loads < MODELS, loads
