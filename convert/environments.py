"""Environments of their own, made by venv and pip, for packages whose pins exclude ours: nothing of them is imported
here, a script of ours runs inside.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampan.child import ended, run_other
from sampan.errors import InputError, UnfinishedError, brief, wrong

MARKS = ("pins", "pyvenv.cfg")  # what an environment that we made holds


@dataclass(frozen=True, slots=True)
class Step:
    """One call of pip: `aside`, a folder inside the environment, where the packages are not in its path."""

    packages: tuple[str, ...]
    options: tuple[str, ...] = ()
    aside: str | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """`name`: of its folder; `what` it is and what it `brings`, for messages; `flag`: the option that makes it.

    `newest`: the last minor version of Python 3 that all its packages have wheels for.
    """

    name: str
    what: str
    flag: str
    brings: str
    steps: tuple[Step, ...]
    newest: int | None = None

    @property
    def pins(self) -> str:
        return " ".join(p for step in self.steps for p in step.packages)

    @property
    def place(self) -> Path:
        """Where it lies: below `sampan` in the user's cache folder."""
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "sampan" / self.name


def find(wanted: Environment, folder: Path) -> Path:
    """`folder`, if it holds the environment that this version makes."""
    pins = folder / "pins"
    found = pins.read_text() if pins.is_file() else None
    if found != wanted.pins:
        raise wrong(
            folder, wanted.what, "none" if found is None else f"one with {brief(found)}",
            f"{wanted.flag} makes it with pip: {wanted.brings}",
        )  # fmt: skip
    return folder


def make(wanted: Environment, folder: Path) -> Path:
    """Make the environment with venv and pip, unless it stands; what pip prints goes to stderr."""
    try:
        return find(wanted, folder)
    except InputError:
        folder.parent.mkdir(parents=True, exist_ok=True)
    if wanted.newest is not None and sys.version_info[:2] > (3, wanted.newest):
        version = ".".join(map(str, sys.version_info[:2]))
        raise wrong(wanted.flag, f"Python 3.{wanted.newest} or older, which its packages have wheels for", version)
    if os.path.lexists(folder) and not all((folder / name).is_file() for name in MARKS):
        raise InputError(
            f"{folder}: {wanted.flag} would put its environment there, and finds a folder that it did not make: "
            "move that away, or set XDG_CACHE_HOME"
        )
    part = Path(tempfile.mkdtemp(prefix=f"{wanted.name}.", dir=folder.parent))
    try:
        call(wanted, sys.executable, "venv", str(part / "new"))
        for step in wanted.steps:
            # the resolver would complain that a folder aside does not suit the rest, which never sees it
            aside = ("--ignore-installed", "--target", str(part / "new" / step.aside)) if step.aside else ()
            pip = ("pip", "--disable-pip-version-check", "install", "--quiet", *step.options, *aside)
            call(wanted, str(part / "new" / "bin" / "python"), *pip, *step.packages)
        (part / "new" / "pins").write_text(wanted.pins)
        if folder.exists():
            folder.rename(part / "old")
        (part / "new").rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def call(wanted: Environment, python: str, *module: str) -> None:
    """Run a module of Python, venv or pip."""
    if code := run_other(python, "-m", *module).returncode:
        raise InputError(f"{wanted.flag}: `-m {' '.join(module[:3])} …` failed with exit code {code}")


def ask(
    place: Path, inside: Path, work: Path, command: str, what: str, extra: Mapping[str, str], **arguments: object
) -> dict[str, Any]:
    """Run a script of ours in the environment at `place`, without PYTHON* and HF_* variables: its answer.

    The script gets the path of a JSON file: `command`, `arguments`, and `result`, where it writes its answer. Raises
    InputError with the last line that it wrote where it fails, UnfinishedError where a signal ended it; `what` is its
    subject.
    """
    job, result = (work / f"{command}.{n}.json" for n in ("job", "result"))
    job.write_text(json.dumps({"command": command, "result": result, **arguments}, default=str))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
    python = str(place / "bin" / "python")
    done = run_other(python, str(inside), str(job), environment={**kept, **extra}, capture=True)
    if done.returncode < 0:
        raise UnfinishedError(f"{what} {ended(done.returncode, '')}; the same command tries again")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(f"{what} failed: {brief(lines[-1], 300) if lines else f'exit code {done.returncode}'}")
    answer: dict[str, Any] = json.loads(result.read_text())
    return answer
