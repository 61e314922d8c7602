"""Fixtures that several tests share; tiny models are built once for a run, whichever worker asks first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import encoders
import pytest
import tiny

from sampan.checkpoint import open_folder
from sampan.convert import trial
from sampan.convert.conversion import Conversion, convert, prepare

pytest_plugins = ["hub_shell"]


def pytest_configure() -> None:
    """A worker keeps to its share of the processors: engines start as many threads as they may use, and threads that
    wait for each other on a busy processor cost several times the work itself.

    A shell starts what shall run in the background without interrupts, and processes inherit that; tests send some.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        mine = sorted(os.sched_getaffinity(0))
        at = int(worker.removeprefix("gw")) % len(mine)
        os.sched_setaffinity(0, mine[at :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])])


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not ask for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`everyday("a", "b-*")`: of a test's cases those whose ids match; the others are slow. A pattern that no case
    matches is an error where whole files were collected.
    """
    unused: dict[tuple[str, str], bool] = {}
    for item in items:
        if marker := item.get_closest_marker("everyday"):
            name, _, case = item.nodeid.removesuffix("]").partition("[")
            matches = [fnmatchcase(case, pattern) for pattern in marker.args]
            if not any(matches):
                item.add_marker(pytest.mark.slow)
            for pattern, matched in zip(marker.args, matches, strict=True):
                unused[name, pattern] = unused.get((name, pattern), True) and not matched
    if left := [key for key, value in unused.items() if value and "::" not in " ".join(config.args)]:
        raise pytest.UsageError(f"everyday: no case of {left[0][0]} matches {left[0][1]!r}")


TRIAL = trial.trial


@pytest.fixture(scope="session", autouse=True)
def no_trial() -> Iterator[None]:
    """A conversion inside the tests' own process starts no child that opens it: test_trial.py and commands do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "trial", lambda job, name: contextlib.nullcontext(lambda: None))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model(name)` → the folder of a tiny model; "trained" and "trained-kimi" are the committed ones."""
    committed = {"trained": tiny.FIXTURE, "trained-kimi": tiny.KIMI}

    def get(name: str) -> Path:
        if name in committed:
            return committed[name]
        if not (shared / name).exists():
            built = tiny.build(name, tmp_path_factory.mktemp("models") / name)
            with contextlib.suppress(OSError):  # another worker was first
                built.rename(shared / name)
        return shared / name

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
