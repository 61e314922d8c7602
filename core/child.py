"""Start processes: the one place that does. Nothing that lies in the working directory is imported by them.

`python -c` and `python -m` put the working directory, which may be a stranger's checkpoint, in front of every package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO

from .errors import brief


def start(
    code: str, *arguments: str, stdin: int = subprocess.DEVNULL, stderr: IO[bytes] | int | None = None, **more: str
) -> subprocess.Popen[str]:
    """Run Python code of ours with what this process can import; `more` are environment variables.

    Its standard output is a pipe, in UTF-8.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8", env=environment() | more,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """This process's, so that no Python below it takes modules from a working directory.

    Relative entries of PYTHONPATH go: an empty one, which a colon too many makes, is the working directory.
    """
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(p)]  # noqa: PTH117
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return kept | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})


def run_other(
    python: str, *arguments: str, environment: Mapping[str, str] | None = None, capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the Python of another environment, isolated from all else; what it prints goes to stderr, or is kept."""
    pipe = subprocess.PIPE if capture else None
    return subprocess.run(
        [python, "-I", *arguments],
        stdin=subprocess.DEVNULL, stdout=pipe or sys.stderr.fileno(), stderr=pipe, env=environment, text=True,
        errors="replace",
    )  # fmt: skip


def ended(code: int, said: str, when: str = "") -> str:
    """How a process ended, when, and the last line that it wrote, for an error message."""
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lines = said.strip().splitlines()
    return f"{how}{when}: {brief(lines[-1], 300)}" if lines else how + when


def tool(
    *command: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE, stderr: IO[bytes] | int | None = None
) -> subprocess.Popen[bytes]:
    """Start a program of the system, such as adb; its pipes carry bytes."""
    return subprocess.Popen([*command], stdin=stdin, stdout=stdout, stderr=stderr, env=environment())


def asked(*command: str, seconds: float) -> tuple[int, str, str]:
    """Run a program of the system to its end: exit code, standard output and error; or TimeoutError."""
    with tool(*command, stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise TimeoutError from None
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
