"""Saved states: answers behind them are those of a plain session; what does not fit never reaches an engine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_engines import artifacts, path
from noise_engine import Noise

from sampan import runtime
from sampan.errors import InputError
from sampan.runtime import EngineOptions, Options, Sampling, Session
from sampan.runtime.opened import Opened
from sampan.runtime.state import DIGEST, FRONT

__all__ = ["artifacts", "path"]  # fixtures of the tests here
TEXT = "The kettle was lost, and the sailor was kind. 那里没有水壶。 "
ONE = EngineOptions(threads=1, context=512)


def document(session: Session) -> list[int]:
    return session.tokenize(TEXT * 9)[:150]


def greedy(n: int, **more: Any) -> Options:
    return Options(n, Sampling(), **more)


def saved(path: Path, out: Path, options: EngineOptions = ONE) -> list[int]:
    """A state of a document, whose tokens are given."""
    with runtime.open(path, options) as session:
        tokens = document(session)
        session.stream(tokens, greedy(1)).read()
        assert session.save(out) == len(tokens)
    return tokens


@pytest.mark.everyday("*-What was lost? ")
@pytest.mark.parametrize("question", ["", "What was lost? ", "谁很善良？"])
def test_answers_behind_a_state_are_those_of_a_plain_session(path: Path, question: str, tmp_path: Path) -> None:
    tokens = saved(path, tmp_path / "s")
    with runtime.open(path, ONE) as session:
        asked = tokens + session.tokenize(question, around=False)
        session.load(tmp_path / "s")
        again = session.stream(asked, greedy(24, logprobs=3)).read()
    with runtime.open(path, ONE) as plain:
        plain.stream(tokens, greedy(1)).read()
        expected = plain.stream(asked, greedy(24, logprobs=3)).read()
    assert again.tokens == expected.tokens and again.text == expected.text
    assert again.usage.cached_tokens == expected.usage.cached_tokens
    if question:
        assert again.usage.cached_tokens == len(tokens)


def test_logits_behind_a_state_are_those_of_a_plain_session(path: Path, tmp_path: Path) -> None:
    tokens = saved(path, tmp_path / "s")
    with runtime.open(path, ONE) as session, runtime.open(path, ONE) as plain:
        more = session.tokenize("What was lost?", around=False)
        session.load(tmp_path / "s")
        found = session._advance(object(), tokens + more)[0].copy()
        plain.stream(tokens, greedy(1)).read()
        np.testing.assert_array_equal(found, plain._advance(object(), tokens + more)[0])
        np.testing.assert_allclose(found, plain.logits(tokens + more)[-1], atol=5e-3)  # in other batches


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("flash", [False, True])
def test_every_kind_of_cache_is_kept(kv: Any, flash: bool, artifacts: dict[str, Path], tmp_path: Path) -> None:
    if kv == "q8_0" and not flash:
        pytest.skip("llama.cpp has no such cache without flash attention")
    options = EngineOptions(threads=1, context=512, kv=kv, flash_attention=flash)
    tokens = saved(artifacts["gguf"], tmp_path / "s", options)
    with runtime.open(artifacts["gguf"], options) as session, runtime.open(artifacts["gguf"], options) as plain:
        assert session.load(tmp_path / "s") == len(tokens)
        asked = [*tokens, 5, 6]
        plain.stream(tokens, greedy(1)).read()
        assert session.stream(asked, greedy(16)).read().tokens == plain.stream(asked, greedy(16)).read().tokens


def test_a_state_goes_on_where_an_answer_ended(path: Path, tmp_path: Path) -> None:
    """Saved behind an answer, and loaded into a session that has evaluated something else."""
    with runtime.open(path, ONE) as session:
        tokens = session.tokenize(TEXT)
        answer = session.stream(tokens, greedy(12)).read()
        count = session.save(tmp_path / "s")
        assert count == len(tokens) + len(answer.tokens) - 1
        session.stream(session.tokenize("Another text."), greedy(3)).read()
        session.load(tmp_path / "s")
        asked = [*tokens, *answer.tokens, 7]
        again = session.stream(asked, greedy(12)).read()
        assert again.usage.cached_tokens == count
    with runtime.open(path, ONE) as plain:
        plain.stream(tokens, greedy(12)).read()
        assert plain.stream(asked, greedy(12)).read().tokens == again.tokens


# What does not fit


@pytest.fixture
def tight(artifacts: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Session, Path]]:
    """A session whose engine must not see a state, and a state of its model."""
    saved(artifacts["gguf"], tmp_path / "s")
    with runtime.open(artifacts["gguf"], ONE) as session:
        session._engine.restore = None  # type: ignore[assignment,method-assign]
        yield session, tmp_path / "s"


def changed(file: Path, **values: Any) -> Path:
    """A state with other values in its header, and a checksum that is right."""
    raw = file.read_bytes()
    magic, version, length = FRONT.unpack(raw[: FRONT.size])
    header = json.dumps(json.loads(raw[FRONT.size : FRONT.size + length]) | values).encode()
    body = FRONT.pack(magic, version, len(header)) + header + raw[FRONT.size + length : -DIGEST]
    file.write_bytes(body + hashlib.blake2b(body, digest_size=DIGEST).digest())
    return file


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "x"}, ": model: expected "),
        ({"engine": "llama.cpp 0"}, ": engine: expected llama-cpp-python 0.3.36, found llama.cpp 0; it was saved else"),
        ({"kv": "f32"}, ": kv: expected f16, found f32; "),
        ({"context": 4096}, ": context: expected 512, found 4096; "),
        ({"tokens": 2**40}, ": tokens: expected 1 to 512, found 1099511627776"),
        ({"tokens": 0}, ": tokens: expected 1 to 512, found 0"),
        ({"tokens": -1}, ": tokens: expected 1 to 512, found -1"),
        ({"tokens": "x"}, ": tokens: expected 1 to 512, found x"),
        ({"tokens": 12}, " bytes and the state's, found "),
        ({"bytes": 2**60}, " for a state of 1152921504606846976"),
        ({"bytes": -5}, " for a state of -5"),
    ],
)
def test_what_was_saved_elsewhere_is_refused_by_name(
    values: dict[str, Any], message: str, tight: tuple[Session, Path]
) -> None:
    session, file = tight
    with pytest.raises(InputError) as e:
        session.load(changed(file, **values))
    assert str(e.value).startswith(str(file)) and message in str(e.value) and "\n" not in str(e.value)
    assert session.stream([1, 2], greedy(2)).read().tokens, "it answers as before"


def test_a_state_that_is_too_large_for_its_tokens_is_refused(tight: tuple[Session, Path]) -> None:
    session, file = tight
    raw = file.read_bytes()
    size = json.loads(raw[FRONT.size : FRONT.size + FRONT.unpack(raw[: FRONT.size])[2]])["bytes"]
    file.write_bytes(raw[:-DIGEST] + b"\0" + raw[-DIGEST:])
    with pytest.raises(InputError, match=f": bytes: expected at most {size} for 145 tokens, found {size + 1}"):
        session.load(changed(file, bytes=size + 1))


def test_a_damaged_or_cut_file_never_reaches_the_engine(tight: tuple[Session, Path]) -> None:
    session, file = tight
    raw = file.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(0, 700, 7), *rng.integers(0, len(raw), 40).tolist(), len(raw) - 1]
    for at in places:
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :])
        with pytest.raises(InputError, match="^" + str(file)):
            session.load(file)
    for size in (0, 3, 15, 16, 100, 300, len(raw) // 2, len(raw) - 1):
        file.write_bytes(raw[:size])
        with pytest.raises(InputError, match="^" + str(file)):
            session.load(file)
    file.write_bytes(raw + b"\0")
    with pytest.raises(InputError, match="bytes and the state's, found"):
        session.load(file)
    file.write_bytes(raw)
    with pytest.raises(TypeError):
        session.load(file)  # that one would have reached it


@pytest.mark.parametrize("place", ["first", "middle", "length"])
def test_what_an_engine_does_not_take_leaves_it_empty(place: str, path: Path, tmp_path: Path) -> None:
    """A checksum that is right, over a state that is not."""
    tokens = saved(path, tmp_path / "s")
    raw = bytearray((tmp_path / "s").read_bytes())
    length = FRONT.unpack(raw[: FRONT.size])[2]
    state = FRONT.size + length + 4 * len(tokens)
    more: dict[str, Any] = {}
    if place == "first":
        raw[state : state + 8] = b"\xff" * 8
    elif place == "length":
        del raw[-DIGEST - 40 : -DIGEST]
        more = {"bytes": len(raw) - DIGEST - state}
    else:
        raw[state + 8 : state + 400] = b"\xff" * 392
    (tmp_path / "s").write_bytes(raw)
    with runtime.open(path, ONE) as session, runtime.open(path, ONE) as plain:
        if "onnx" in path.name and place != "length":  # numbers are all that its state has
            session.load(changed(tmp_path / "s", **more))
            return
        with pytest.raises(InputError, match=r"llama.cpp does not take this state|the state: expected"):
            session.load(changed(tmp_path / "s", **more))
        assert session.stream(tokens, greedy(8)).read().tokens == plain.stream(tokens, greedy(8)).read().tokens


def test_another_kind_of_file_is_no_state(tight: tuple[Session, Path], tmp_path: Path) -> None:
    session, _ = tight
    for other, message in (
        (b"GGUF" + b"\0" * 60, "expected a saved state, found something else"),
        (FRONT.pack(b"SAMPANST", 2, 4) + b"{}", "version: expected 1, found 2"),
        (FRONT.pack(b"SAMPANST", 1, 2**31) + b"{}", "header: expected at most 4096 bytes"),
        (FRONT.pack(b"SAMPANST", 1, 2) + b"[]", "model: expected "),
    ):
        (tmp_path / "x").write_bytes(other)
        with pytest.raises(InputError, match=message):
            session.load(tmp_path / "x")
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "none", "."):
        with pytest.raises(InputError):
            session.load(tmp_path / name)


def test_another_model_of_the_same_shape_is_another_one(artifacts: dict[str, Path], tmp_path: Path) -> None:
    for name in ("gguf", "onnx"):
        source = artifacts[name]
        copy = tmp_path / source.name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
        assert Opened(copy).identity == Opened(source).identity
        weights = copy / "model.onnx.data" if copy.is_dir() else copy
        raw = bytearray(weights.read_bytes())
        for at in range(len(raw) // 2, len(raw), 64):  # other weights in a half of it
            raw[at] ^= 1
        weights.write_bytes(raw)
        assert Opened(copy).identity != Opened(source).identity


# Writing


def test_a_state_is_whole_or_not_there(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(artifacts["gguf"], tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    before = (tmp_path / "s").read_bytes()
    (tmp_path / "notes.txt").write_text("mine")

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    with runtime.open(artifacts["gguf"], ONE) as session:
        with pytest.raises(InputError, match="nothing is evaluated that could be saved"):
            session.save(tmp_path / "s")
        session.stream([1, 2, 3], greedy(1)).read()
        with pytest.raises(InputError, match=r"notes\.txt: this is there already and is no saved state"):
            session.save(tmp_path / "notes.txt")
        with pytest.raises(InputError, match="none/s: the state cannot be saved: No such file"):
            session.save(tmp_path / "none" / "s")
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(InputError, match="s: the state cannot be saved: No space left on device"):
                session.save(tmp_path / "s")
        assert (tmp_path / "s").read_bytes() == before
        session.save(tmp_path / "s")
        assert (tmp_path / "s").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "s"]


def test_a_session_without_an_artifact_has_no_state(tmp_path: Path) -> None:
    with Session(Noise()) as session, pytest.raises(InputError, match="has no artifact to compute with"):
        session.save(tmp_path / "s")
