"""What pipes, arguments and closed streams bring to the command line: never an internal error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import to_gguf

SAMPAN = [sys.executable, "-c", "from sampan.cli import main; main()"]
LATIN = "Grüße".encode("latin-1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to_gguf(tiny.FIXTURE, out := tmp_path_factory.mktemp("terminal") / "m.gguf", "q8_0")
    return out


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"capture_output": True, "timeout": 120, "stdin": subprocess.DEVNULL} | options
    if "input" in options:
        options.pop("stdin")
    return subprocess.run([*SAMPAN, *map(os.fsencode, arguments)], **options)


def ask(model: Path, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return run("run", model, *arguments, "--max-tokens", "4", **options)


def test_bytes_that_are_no_utf8(model: Path) -> None:
    piped = ask(model, input=LATIN)
    assert piped.returncode == 0 and piped.stdout.strip()
    assert piped.stderr.startswith(b"standard input is not UTF-8: bytes that are none became replacement characters")
    for done in (ask(model, LATIN), ask(model, "--system", LATIN, "Hi"), ask(model, "--chat", input=LATIN + b"\n\n")):
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_prompt_and_a_pipe_are_joined(model: Path) -> None:
    joined = ask(model, "Please work out", input=b"2 + 38.")
    assert joined.stdout == ask(model, "Please work out\n\n2 + 38.").stdout
    assert joined.stdout != ask(model, "Please work out").stdout


def test_an_empty_system_message_is_one(model: Path) -> None:
    assert ask(model, "--system", "", "Hi").returncode == 0


def test_an_answer_that_was_cut_says_so(model: Path) -> None:
    assert ask(model, "Tell me about France").stderr == b"cut at --max-tokens 4\n"
    full = run("run", model, "a b c d e f g h", "--context", "24", "--raw")
    assert full.stderr in (b"cut: the context of 24 tokens is full; --context sets another\n", b"")


@pytest.mark.parametrize("arguments", [("--seed", "-1", "Hi"), ("--chat",)])
def test_bad_usage(arguments: tuple[str, ...], model: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" <&-', "bash", *SAMPAN, "run", str(model), *arguments], capture_output=True, timeout=60
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize("shell", ['exec "$@" <&-', 'exec "$@" >&-', 'exec "$@" 2>&-', 'exec "$@" >/dev/full'])
def test_streams_that_are_closed_or_full(shell: str, model: Path) -> None:
    command = ["bash", "-c", shell, "bash", *SAMPAN, "run", str(model), "Hi", "--max-tokens", "4"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert b"internal" not in done.stderr and b"Traceback" not in done.stderr
    if "full" in shell:
        assert (done.returncode, done.stderr) == (
            2, b"error: standard output: No space left on device\n"
        )  # fmt: skip
    else:
        assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves(model: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -c 1 >/dev/null; exit "${PIPESTATUS[0]}"', "bash", *SAMPAN, "inspect", str(model)],
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode in (0, 2) and done.stderr == b""


def test_names_that_are_no_utf8(model: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(LATIN + b".gguf")
    done = run("convert", tiny.FIXTURE, "-o", out)
    assert done.returncode == 2 and b"is no UTF-8, as manifests need it; choose another name" in done.stderr
    shutil.copy(model, out)
    for done in (run("inspect", out), run("run", out, "Hi", "--max-tokens", "2")):
        assert done.returncode in (0, 1, 2) and b"internal" not in done.stderr, done.stderr


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_none_are_wanted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sampan.cli import _terminal

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(_terminal.sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert _terminal.colours()
    monkeypatch.setenv(name, value)
    assert not _terminal.colours()
