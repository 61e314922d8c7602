"""Fixtures that several tests share; tiny models are built once for a run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import encoders
import pytest
import tiny

from sampan.checkpoint import open_folder
from sampan.convert import trial
from sampan.convert.conversion import Conversion, convert, prepare

pytest_plugins = ["hub_shell"]


TRIAL = trial.trial


@pytest.fixture(scope="session", autouse=True)
def no_trial() -> Iterator[None]:
    """A conversion inside the tests' own process starts no child that opens it: test_trial.py and commands do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "trial", lambda job, name: contextlib.nullcontext(lambda: None))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model(name)` → the folder of a tiny model; "trained" and "trained-kimi" are the committed ones."""
    built: dict[str, Path] = {"trained": tiny.FIXTURE, "trained-kimi": tiny.KIMI}

    def get(name: str) -> Path:
        if name not in built:
            built[name] = tiny.build(name, tmp_path_factory.mktemp("models") / name)
        return built[name]

    return get


Pair = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def pair(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """`pair(encoding)` → a checkpoint in one of encoders.ENCODERS, and the plain one with the same values."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            made[name] = encoders.encode(model(encoders.TINY), tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


def to_gguf(source: Path, out: Path, quant: str) -> Conversion:
    """Convert a folder to `out`, replacing it."""
    conversion = prepare(open_folder(source), out, "gguf", quant, jobs=2)
    convert(conversion, overwrite=True)
    return conversion


@pytest.fixture(scope="session")
def gguf(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`gguf(name, quant)` → the converted file, made once."""
    made: dict[tuple[str, str], Path] = {}

    def get(name: str, quant: str) -> Path:
        if (name, quant) not in made:
            out = tmp_path_factory.mktemp("gguf") / f"{name}-{quant}.gguf"
            to_gguf(model(name), out, quant)
            made[name, quant] = out
        return made[name, quant]

    return get


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    code = "from sampan.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=300, env=os.environ | environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
