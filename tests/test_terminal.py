"""What pipes, arguments and closed streams bring to the command line: never an internal error."""

from __future__ import annotations

import json
import os
import re
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_prompt_a_file_and_a_pipe_are_joined(model: Path, tmp_path: Path) -> None:
    (file := tmp_path / "p.txt").write_text("work out")
    joined = ask(model, "Please", "--file", file, input=b"2 + 38.")
    assert joined.stdout == ask(model, "Please\n\nwork out\n\n2 + 38.").stdout
    assert ask(model, "--file", file).stdout == ask(model, "work out").stdout != joined.stdout
    (system := tmp_path / "s.txt").write_text("Answer in Chinese.\n")
    wanted = ask(model, "Well?", "--system", "Answer in Chinese.", "--json", "--temperature", "0")
    found = ask(model, "Well?", "--system-file", system, "--json", "--temperature", "0")
    assert json.loads(found.stdout)["usage"]["prompt_tokens"] == json.loads(wanted.stdout)["usage"]["prompt_tokens"]


@pytest.mark.slow
def test_files_that_are_no_prompts(model: Path, tmp_path: Path) -> None:
    (latin := tmp_path / "latin.txt").write_bytes(LATIN)
    (large := tmp_path / "large.txt").write_bytes(b"a" * 10_000_001)
    for option in ("--file", "--system-file"):
        for path, line in (
            (latin, "byte 2 is not UTF-8; save the file as UTF-8"),
            (large, "10 MB is more than the 10 MB that such a file may have; is it the right file?"),
            (tmp_path, "this is a folder, not a regular file; put the file itself there"),
            (tmp_path / "none", "expected a file, found none; is the folder complete?"),
        ):
            done = ask(model, "Hi", option, path)
            assert (done.returncode, done.stderr.decode()) == (2, f"error: {path}: {line}\n")
    for arguments, line in (
        (("--chat", "--file", latin), "--chat: expected no PROMPT, no --file and no --raw beside it, found one"),
        (("--system", "a", "--system-file", latin), "--system-file: expected no --system beside it, found both"),
    ):
        done = ask(model, *arguments)
        assert (done.returncode, done.stderr.decode()) == (2, f"error: {line}\n")


@pytest.mark.parametrize("piped", [b"", b" \n"])
def test_nothing_in_a_pipe(piped: bytes, model: Path) -> None:
    alone = ask(model, input=piped)
    line = b"error: there is no prompt; give PROMPT, --file, text on standard input, or --chat\n"
    assert (alone.returncode, alone.stderr) == (2, line)
    assert ask(model, "Please work out", input=piped).stdout == ask(model, "Please work out").stdout


def test_a_large_diff_through_a_pipe(model: Path) -> None:
    diff = b"".join(b"+    line %d of a change\n" % n for n in range(40_000))
    done = ask(model, "--system", "Review this change.", input=diff)
    assert done.returncode == 2
    assert re.fullmatch(
        rb"error: the prompt has \d{6} tokens, and the context 1024; the model was made for no more\n", done.stderr
    )


def test_an_empty_system_message_is_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from sampan.cli import cli
    from sampan.runtime.session import Session

    seen: list[Any] = []
    monkeypatch.setattr(Session, "render_chat", lambda self, messages, *a, **k: seen.append(list(messages)) or "x")
    for system in ([], ["--system", ""]):
        assert CliRunner().invoke(cli, ["run", str(model), "Hi", "--max-tokens", "1", *system]).exit_code == 0
    user = {"role": "user", "content": "Hi"}
    assert seen == [[user], [{"role": "system", "content": ""}, user]]


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
    """Not 1, which is a failed gate, and not 120, Python's for a flush that failed."""
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (("--help",), ("inspect", model), ("run", model, "Hi", "--max-tokens", "4")):
        done = run(*arguments, stdout=writing, stderr=subprocess.PIPE, capture_output=False)
        assert (done.returncode, done.stderr) == (2, b"")
    os.close(writing)


@pytest.mark.slow
def test_standard_error_that_cannot_be_written_stops_no_work(tmp_path: Path) -> None:
    code = "from sampan.cli import _progress, main; _progress.PLAIN_SECONDS = 0; main()"
    for n, to in enumerate(("2>/dev/full", "2>&-", "<&- >&- 2>&-")):
        out = tmp_path / f"{n}.gguf"
        command = [sys.executable, "-c", code, "convert", str(tiny.FIXTURE), "-o", str(out)]
        done = subprocess.run(["bash", "-c", f'exec "$@" {to}', "bash", *command], capture_output=True, timeout=60)
        assert done.returncode == 0 and out.exists(), done
        assert done.stdout == b"" or done.stdout.startswith(os.fsencode(out))


def test_an_answer_that_the_terminal_cannot_show(model: Path) -> None:
    done = ask(model, "讲一个女孩的故事。", env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0 and done.stdout.startswith(b"\\u"), done


@pytest.mark.slow
def test_names_that_are_no_utf8(model: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(LATIN + b".gguf")
    done = run("convert", tiny.FIXTURE, "-o", out)
    assert done.returncode == 2 and b"is no UTF-8, as manifests need it; choose another name" in done.stderr
    shutil.copy(model, out)
    source = Path(shutil.copytree(tiny.FIXTURE, tmp_path / os.fsdecode(LATIN)))
    shown = rb"Gr\xfc\xdfe".replace(rb"\x", rb"\udc")
    report = tmp_path / "report.json"
    for code, *arguments in (
        (0, "inspect", out), (0, "inspect", source), (0, "inspect", source, "--json"),
        (0, "run", out, "Hi", "--max-tokens", "2"), (0, "convert", source, "-o", tmp_path / "m.gguf"),
        (1, "validate", source, out, "--windows", "1", "--json", report, "--html", tmp_path / "report.html"),
    ):  # fmt: skip
        done = run(*arguments)
        assert done.returncode == code, done
    assert json.loads(report.read_text())["candidates"][0]["path"].encode("utf-8", "surrogateescape") == os.fsencode(
        out
    )
    assert shown in run("inspect", source).stdout


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


def test_variables_of_the_template(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from sampan.cli import cli
    from sampan.runtime import Session

    named: list[dict[str, Any]] = []
    monkeypatch.setattr(Session, "render_chat", lambda s, messages, tools=None, **v: named.append(v) or "Hi")
    given = ("a=false", "b=high", "c=1.5", 'd="two words"', 'e={"f": [null]}', "g=3-5")
    options = [x for v in given for x in ("--var", v)]
    assert CliRunner().invoke(cli, ["run", str(model), "Hi", "--max-tokens", "1", *options]).exit_code == 0
    assert named == [{"a": False, "b": "high", "c": 1.5, "d": "two words", "e": {"f": [None]}, "g": "3-5"}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "--var: expected NAME=VALUE, such as enable_thinking=false, found x"),
        ("1=2", "--var: expected NAME=VALUE, such as enable_thinking=false, found 1=2"),
        (
            "a=False",
            '--var: a: False is neither JSON (true, false, 3, "two words") nor a plain word; mend it',
        ),
        ("a=b c", '--var: a: b c is neither JSON (true, false, 3, "two words") nor a plain word; mend it'),
        ("a=" + "[" * 100_000, "--var: a: " + "[" * 19 + "… is nested too deeply; mend it"),
        ("messages=1", "--var: messages is no variable of a template: the conversation has it; give another name"),
        ("options=1", "--var: options is no variable of a template: the conversation has it; give another name"),
    ],
)
def test_variables_that_are_none(value: str, message: str, model: Path) -> None:
    done = ask(model, "Hi", "--var", value)
    assert (done.returncode, done.stderr.decode()) == (2, f"error: {message}\n")
