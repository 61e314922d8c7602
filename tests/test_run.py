"""`sampan run`: its flags, and what it shows of reasoning to whom."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner, Result
from conftest import to_gguf

from sampan.cli import cli, run
from sampan.errors import InputError
from sampan.runtime import Options, Sampling, Session, lanes, open
from sampan.runtime.machine import Memory
from sampan.runtime.sampling import Sampler

SAID = "<think>\nHm.\n</think>\n\nYes, 2 < 3."
TEMPLATE = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{{ messages[-1].content }}{# </think> #}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to_gguf(tiny.FIXTURE, out := tmp_path_factory.mktemp("run") / "m.gguf", "q8_0")
    return out


@pytest.fixture
def thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is SAID, by a template that knows of reasoning."""

    def answer(self: Session, *a: Any, **k: Any) -> Any:
        tokens = iter([*self.tokenize(SAID), *self.tokenize("<|im_end|>")])
        monkeypatch.setattr(Sampler, "choose", lambda *_: next(tokens))
        return begin(self, *a, **k)

    begin = Session._begin
    monkeypatch.setattr(Session, "_begin", answer)
    monkeypatch.setattr(Session, "chat_templates", {"default": TEMPLATE})


def ask(model: Path, *arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(cli, ["run", str(model), "What?", *arguments], catch_exceptions=False, **more)


def test_flags_reach_the_session(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []
    begin = Session._begin
    monkeypatch.setattr(Session, "_begin", lambda s, p, o, *r, **k: seen.append(o) or begin(s, p, o, *r, **k))
    flags = "--top-k 5 --top-p 0.5 --min-p 0.25 --repeat-penalty 1.5 --seed 7 --temperature 0.75 --max-tokens 3"
    assert ask(model, *flags.split(), "--stop", "a", "--stop", "b").exit_code == 0
    assert seen == [Options(3, Sampling(0.75, 5, 0.5, 0.25, 1.5), 7, ("a", "b"))]
    ask(model, "--max-tokens", "1", "--top-k", "0")
    assert seen[1].sampling == Sampling(pytest.approx(0.2), 0, pytest.approx(0.9)) and seen[1].seed is None


def test_json_and_stats(model: Path) -> None:
    first = ask(model, "--json", "--stats", "--temperature", "2", "--max-tokens", "8")
    found = json.loads(first.stdout)
    assert found["finish_reason"] in ("length", "stop") and found["usage"]["completion_tokens"] == len(found["tokens"])
    said = f" more cached; answer {len(found['tokens'])} tokens at "  # a random seed may end the answer earlier
    assert f"seed {found['seed']}; loaded in " in first.stderr and said in first.stderr
    again = json.loads(
        ask(model, "--json", "--temperature", "2", "--max-tokens", "8", "--seed", str(found["seed"])).stdout
    )
    assert again["tokens"] == found["tokens"]
    other = json.loads(ask(model, "--json", "--temperature", "2", "--max-tokens", "8").stdout)
    assert other["seed"] != found["seed"]


@pytest.mark.usefixtures("thinks")
def test_a_pipe_gets_the_answer_alone(model: Path) -> None:
    assert ask(model).stdout == "Yes, 2 < 3.\n"
    found = json.loads(ask(model, "--json").stdout)
    assert (found["reasoning"], found["text"]) == ("Hm.", "Yes, 2 < 3.")
    assert ask(model, "--raw").stdout == SAID + "\n"


@pytest.mark.usefixtures("thinks")
@pytest.mark.parametrize(
    ("environment", "shown"),
    [({"TERM": "xterm"}, "\x1b[2mHm.\x1b[22m\n\nYes, 2 < 3.\n"), ({"NO_COLOR": "1"}, "Hm.\n\nYes, 2 < 3.\n")],
)
def test_a_terminal_shows_reasoning_dimmed(
    environment: dict[str, str],
    shown: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run.sys.stdout, "isatty", lambda: True, raising=False)
    with open(model) as session:
        show = run.Show(as_json=False, stats=False, context=session.context)
        message = show(session.chat([{"role": "user", "content": "?"}])).message()
    assert capsys.readouterr().out == shown
    assert message == {"role": "assistant", "content": "Yes, 2 < 3.", "reasoning_content": "Hm."}


@pytest.mark.usefixtures("thinks")
def test_reasoning_is_switched(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    tokenize = Session.tokenize
    monkeypatch.setattr(Session, "tokenize", lambda s, t, **k: texts.append(t) or tokenize(s, t, **k))
    for flag in ("--think", "--no-think"):
        assert ask(model, flag).exit_code == 0
    assert [t for t in texts if "What?" in t] == ["TrueWhat?", "FalseWhat?"]


def test_a_model_that_cannot_switch(model: Path) -> None:
    from conftest import run_cli

    for arguments, line in (
        (["--no-think"], "--think: this model's chat template cannot switch reasoning; leave the option out"),
        (["--think", "--raw"], "--think is for the chat template, which --raw leaves out; give one of them"),
    ):
        done = run_cli("run", str(model), "Hi", *arguments)
        assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize("command", ["run", "serve"])
def test_the_target_is_a_file_of_its_name(model: Path, command: str) -> None:
    words = ["--port", "0"] if command == "serve" else ["Hi"]
    result = CliRunner().invoke(cli, [command, str(model), *words, "--target", "../cpu"])
    assert isinstance(result.exception, InputError)
    assert re.fullmatch(r"target: expected one of cpu.*, found '\.\./cpu'", str(result.exception))


def test_a_context_whose_cache_does_not_fit_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is loaded: the system would end the process."""
    monkeypatch.setattr(lanes, "memory", lambda _: Memory(None, 1_000_000, None, None))
    with pytest.raises(
        InputError, match=r"--context 8192: the cache of 8192 tokens takes .*; give a smaller --context"
    ):
        ask(model, "--context", "8192")
