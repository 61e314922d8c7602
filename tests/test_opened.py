"""Artifacts whose files change under an open Session: a line in place of a crash or of nonsense."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from both_engines import artifacts
from server_engine import serving

from sampan import runtime
from sampan.errors import ChangedError
from sampan.runtime import EngineOptions, Options, Sampling

__all__ = ["artifacts"]  # a fixture of the tests here
OPTIONS = EngineOptions(context=64, threads=1)
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(params=["gguf", "onnx"])
def place(request: pytest.FixtureRequest, artifacts: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A model, and the file with its weights."""
    model = artifacts[request.param]
    if model.is_dir():
        copy = Path(shutil.copytree(model, tmp_path / "m"))
        return copy, copy / "model.onnx.data"
    return (copy := Path(shutil.copy(model, tmp_path))), copy


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.write(bytes(1000))
    assert path.stat().st_size == size


@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_file_that_is_written_to_is_named(change: Callable[[Path], None], place: tuple[Path, Path]) -> None:
    model, weights = place
    with runtime.open(model, OPTIONS) as session:
        assert session.stream("Hi", Options(4)).read().tokens
        change(weights)
        with pytest.raises(ChangedError) as e:
            session.stream("Hi", Options(4))
    assert str(e.value).startswith(f"{weights}: the file was changed while it was open") and "\n" not in str(e.value)


def at_call(session: runtime.Session, n: int, then: Callable[[], None]) -> None:
    """Do something in front of the nth piece that the engine computes from now on."""
    engine: Any = session._engine
    evaluate, calls = engine.evaluate, iter(range(1, 1000))

    def counted(tokens: list[int], wanted: int) -> Any:
        if next(calls) == n:
            then()
        return evaluate(tokens, wanted)

    engine.evaluate = counted


@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_file_that_is_written_to_during_an_answer(change: Callable[[Path], None], place: tuple[Path, Path]) -> None:
    """Nothing computed from a changed file becomes a token; a file that is cut would end the process."""
    model, weights = place
    with runtime.open(model, OPTIONS) as session:
        greedy = Options(8, Sampling())
        whole = session.stream("Hi", greedy).read().tokens
        session.logits([1])  # something else is cached
        at_call(session, 4, lambda: change(weights))
        stream = session.stream("Hi", greedy)
        for token, chunk in zip(whole[:3], stream, strict=False):
            assert chunk.token == token
        with pytest.raises(ChangedError, match="the file was changed while it was open"):
            next(stream)
        with pytest.raises(ChangedError):
            session.logits([1, 2])


BUS = """
import ctypes, mmap, os, sys, tempfile
from sampan import runtime
session = runtime.open(sys.argv[1], runtime.EngineOptions(context=64, process_wide=sys.argv[2] != "off"))
if sys.argv[2] == "other":
    with tempfile.TemporaryFile() as f:
        f.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(f.fileno(), 0)
        f.truncate(0)
        mapped[0]
os.truncate(sys.argv[1], mmap.PAGESIZE)
session.logits([1, 2, 3])
"""


@pytest.mark.parametrize("how", ["on", "off", "other"])
def test_only_cut_files_of_ours_end_no_process(how: str, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    copy = shutil.copy(gguf("trained", "q8_0"), tmp_path)
    done = subprocess.run([sys.executable, "-c", BUS, str(copy), how], capture_output=True, text=True, timeout=120)
    if how == "on":
        assert done.returncode == 1 and "ChangedError" in done.stderr
    else:
        assert done.returncode == -signal.SIGBUS


@pytest.mark.parametrize("gone", [True, False], ids=["deleted", "replaced"])
def test_a_file_that_is_deleted_or_replaced_is_still_open(gone: bool, place: tuple[Path, Path], tmp_path: Path) -> None:
    model, weights = place
    with runtime.open(model, OPTIONS) as session:
        greedy = Options(8, Sampling())
        before = session.stream("Hi", greedy).read().tokens
        if gone:
            weights.unlink()
        else:
            (tmp_path / "new").write_bytes(b"another one")
            (tmp_path / "new").replace(weights)
        session.logits([1])  # something else is cached
        assert session.stream("Hi", greedy).read().tokens == before


def test_the_server_says_so_and_lives_on(place: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    """A client learns no path; who runs the server finds it in the log."""
    model, weights = place
    with runtime.open(model, OPTIONS) as session, serving(session) as (url, _):
        ai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert ai.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2).choices
        overwrite(weights)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="the model's file was changed") as e:
                ai.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)
            assert weights.name not in str(e.value)
        assert f"{weights}: the file was changed while it was open" in caplog.text
        assert ai.models.list().data[0].id == "tiny"


def test_the_server_says_so_in_the_middle_of_an_answer(place: tuple[Path, Path]) -> None:
    model, weights = place
    with runtime.open(model, OPTIONS) as session, serving(session) as (url, _):
        at_call(session, 4, lambda: cut(weights))
        ai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="the model's file was changed"):
            list(ai.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, stream=True, temperature=0))
        assert ai.models.list().data[0].id == "tiny"
