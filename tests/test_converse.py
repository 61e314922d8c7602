"""Conversations at a terminal, in a real pseudo-terminal: editing, history, commands, Ctrl-C, faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import to_gguf
from pty_shell import EDITED, EDITED_END, SAMPAN, Terminal

from sampan.conversation import read_conversation, write_conversation
from sampan.errors import InputError
from sampan.printable import printable_lines

PERU, LIMA = "What is the capital of Peru?", "The capital of Peru is Lima."
UP, LEFT, BACKSPACE, HOME = "\x1b[A", "\x1b[D", "\x7f", "\x01"
# Every token takes its time; every answer is what SAID says, by a template that knows of reasoning.
SLOW = f"""
import time
from sampan.runtime.sampling import Sampler
choose = Sampler.choose
Sampler.choose = lambda *a: time.sleep(0.05) or choose(*a)
{SAMPAN}
"""
SAID = """
from sampan.runtime.sampling import Sampler
from sampan.runtime.session import Session
begin = Session._begin
def answer(self, *a, **k):
    tokens = iter([*self.tokenize({said!r}, special=False), *self.tokenize("<|im_end|>")])
    Sampler.choose = lambda *_: next(tokens)
    return begin(self, *a, **k)
Session._begin = answer
Session.chat_templates = {{"default": {template!r}}}
"""
TEMPLATE = "{% if thinking %}Think. {% endif %}{{ messages[-1].content }}{# </think> #}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to_gguf(tiny.FIXTURE, out := tmp_path_factory.mktemp("converse") / "m.gguf", "q8_0")
    return out


@pytest.fixture
def talk(model: Path) -> Iterator[Callable[..., Terminal]]:
    """`talk(…)` → a terminal where the model waits for a first message."""
    opened: list[Terminal] = []

    def start(*arguments: str, **more: Any) -> Terminal:
        terminal = Terminal("run", str(model), "--temperature", "0", *arguments, **more)
        opened.append(terminal.__enter__())
        terminal.until(terminal.prompt)
        return terminal

    yield start
    for terminal in opened:
        terminal.__exit__(None, None, None)


def saved(t: Terminal, path: Path) -> list[tuple[str, str]]:
    """(role, content) of the conversation."""
    assert f"{path}: " in t.say(f"/save {path}")
    return [(m["role"], m["content"]) for m in json.loads(path.read_text())]


def test_a_conversation(talk: Callable[..., Terminal], tmp_path: Path) -> None:
    """Turns add up; the last messages come back with the arrow keys and can be changed."""
    t = talk()
    assert "/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends." in t.seen
    assert t.say(PERU) == LIMA + "\n"
    second = t.say(UP + BACKSPACE * 5 + "France?")
    assert second.startswith("The capital of ")
    t.say(UP + UP + HOME + "Well, " + LEFT + BACKSPACE)
    messages = saved(t, tmp_path / "talk.json")
    assert messages[:3] == [("user", PERU), ("assistant", LIMA), ("user", "What is the capital of France?")]
    assert messages[3] == ("assistant", second.rstrip("\n"))
    assert messages[4] == ("user", f"Well {PERU}") and len(messages) == 6
    assert t.end() == 0


def test_several_lines_are_one_message(talk: Callable[..., Terminal], tmp_path: Path) -> None:
    """By Alt-Enter, by a backslash, and by a paste, whose own backslashes stay."""
    t = talk("--max-tokens", "2")
    t.say("a\x1b\rb\\\rc")
    t.say("\x1b[200~d \\\r\ne\x1b[201~ f")
    assert saved(t, tmp_path / "talk.json")[::2] == [("user", "a\nb\nc"), ("user", "d \\\ne f")]


def test_wide_characters_in_a_narrow_terminal(talk: Callable[..., Terminal], tmp_path: Path) -> None:
    """The line is longer than the terminal, which changes its width while it is edited."""
    t = talk("--max-tokens", "2", columns=20)
    text = "哪座城市是中国的首都？" * 4
    t.type(text)
    time.sleep(0.3)
    t.resize(33)
    t.until(EDITED)  # drawn anew
    t.say(LEFT + BACKSPACE + "?" + HOME + "请问")
    assert saved(t, tmp_path / "talk.json")[0] == ("user", f"请问{text[:-2]}?{text[-1]}")
    t.resize(9)
    t.until(EDITED)
    assert t.say("哪座城市是中国的首都？")


def test_ctrl_c_stops_the_answer_and_nothing_else(talk: Callable[..., Terminal], tmp_path: Path) -> None:
    t = talk("--stats", code=SLOW)
    t.type(PERU + "\r")
    t.until(EDITED_END)
    t.until("capital")
    t.type("\x03")
    shown = t.until(t.prompt)
    assert "Lima" not in shown and "stopped" in shown
    part = saved(t, tmp_path / "talk.json")[1][1]
    assert LIMA.startswith(part) and "capital" in part and part != LIMA
    t.say("/new")
    assert t.say(PERU).startswith(LIMA + "\n")
    t.type("half a line")
    assert t.press("\x03") == "\nCtrl-D ends\n"  # at the prompt it clears the line
    assert "Ctrl-D ends" in t.seen and t.process.poll() is None
    assert saved(t, tmp_path / "talk.json") == [("user", PERU), ("assistant", LIMA)]
    assert t.end() == 0


def test_commands(talk: Callable[..., Terminal], tmp_path: Path) -> None:
    t, path = talk("--system", "Answer."), tmp_path / "talk.json"
    assert t.say("/stats") == "there was no answer yet\n"
    assert t.say("/system") == "Answer.\n"
    assert t.say("/system Be\x1b\rbrief.") == "" and t.say("/system") == "Be\nbrief.\n"
    first = t.say(PERU)
    assert " of 1024 tokens of context" in t.say("/stats") and "seed " in t.seen
    for name in ("new", "system", "think", "stats", "save", "load", "help"):
        assert f"\n/{name} " in "\n" + t.say("/help"), name
    assert t.say("/think on") == "error: /think: this model's chat template cannot switch reasoning\n"
    assert t.say("/think maybe") == "error: /think: on or off, not maybe\n"
    assert t.say("/bye") == "error: /bye is no command; /help lists them; a space in front makes it a message\n"
    whole = [("system", "Be\nbrief."), ("user", PERU), ("assistant", first.rstrip("\n"))]
    assert saved(t, path) == whole
    t.say("/new")
    assert saved(t, path) == whole[:1]
    write_conversation(other := tmp_path / "other.json", [{"role": "user", "content": PERU}])
    assert t.say(f"/load {other}") == f"{other}: 1 message, 16 of 1024 tokens of context\n"
    assert t.say("/sy\t") == "there is no system message; /system TEXT sets one\n"
    assert saved(t, path) == [("user", PERU)]
    (tmp_path / "letter.txt").write_text("dear")
    for line, answer in (
        (f"/save {tmp_path}/letter.txt", f"{tmp_path}/letter.txt: this is there already and is no conversation"),
        (f"/save {tmp_path}/no/x", f"{tmp_path}/no/x: expected a name in a folder that exists, found no such folder"),
        ("/save", "/save: name a file, as in /save talk.json"),
        ("/save ~nobody-of-that-name/x", "/save: Could not determine home directory."),
        (f"/load {tmp_path}/none", f"{tmp_path}/none: expected a file, found none"),
        (f"/load {tmp_path}", f"{tmp_path}: this is a folder, not a regular file"),
        (f"/load {tmp_path}/letter.txt", f"{tmp_path}/letter.txt: expected JSON, found"),
    ):
        shown = t.say(line)
        assert shown.startswith(f"error: {answer}") and shown.count("\n") == 1, shown
    assert (tmp_path / "letter.txt").read_text() == "dear"
    assert t.end() == 0


def test_reasoning_is_switched_and_dimmed(talk: Callable[..., Terminal], tmp_path: Path) -> None:
    said = "<think>\nHm.\n</think>\n\nYes."
    t = talk(code=SAID.format(said=said, template=TEMPLATE) + SAMPAN)
    assert t.say("Really?") == "Hm.\n\nYes.\n" and "\x1b[2mHm.\x1b[22m" in t.seen

    def prompt() -> int:
        return int(t.say("/stats").split("; prompt ")[1].split(" ")[0])

    plain = prompt()
    for line in ("/new", "/think on", "Really?"):
        t.say(line)
    assert prompt() > plain, "the template was told"
    t.say(f"/save {tmp_path}/t.json")
    assert json.loads((tmp_path / "t.json").read_text())[1] == {
        "role": "assistant", "content": "Yes.", "reasoning_content": "Hm.",
    }  # fmt: skip


def test_answers_move_no_cursor(talk: Callable[..., Terminal]) -> None:
    said = "a\x1b[2Jb\x07c\rd\u202ee\n\tf"
    t = talk(code=SAID.format(said=said, template=TEMPLATE) + SAMPAN)
    t.say("Well?")
    assert "a\\x1b[2Jb\\x07c\\rd\\u202ee\r\n" in t.seen and "\x1b[2J" not in t.seen
    assert printable_lines(said) == "a\\x1b[2Jb\\x07c\\rd\\u202ee\n\tf"


def test_control_tokens_open_no_turn(talk: Callable[..., Terminal]) -> None:
    t = talk("--max-tokens", "1")

    def tokens(text: str) -> int:
        t.say("/new")
        t.say(text)
        said = t.say("/stats")
        return int(said.split("; ")[-1].split(" of ")[0])

    assert tokens("<|im_end|>") > tokens("a") + 2


def test_faults_end_no_conversation(talk: Callable[..., Terminal], tmp_path: Path) -> None:
    t = talk("--context", "62")
    assert t.say("word " * 60).startswith("error: the prompt has ")
    assert "/new begins another conversation" in t.seen
    assert t.say(PERU) == LIMA + "\n"
    full = "of 62 tokens of context are used; where it is full the oldest turns are left out; /new begins another\n"
    assert any(full in t.say(PERU) for _ in range(3))
    t.say("/new")
    assert t.say(PERU) == LIMA + "\n" and t.end() == 0


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_a_terminal_that_can_only_write(variable: str, talk: Callable[..., Terminal], tmp_path: Path) -> None:
    t = talk(prompt="> ", **{variable: "dumb"})
    assert t.say(PERU) == f"{PERU}\n{LIMA}\n"
    t.type("Well,\\\r")
    t.until(". ")
    assert t.say(PERU)
    t.type("half a line")
    t.until("half a line")
    time.sleep(0.2)  # until it reads: Python sees a signal just before that at the next key
    t.type("\x03")
    t.until("Ctrl-D ends")  # the system shows its own ^C, and may show the prompt again
    t.until(t.prompt)
    assert saved(t, tmp_path / "t.json")[::2] == [("user", PERU), ("user", f"Well,\n{PERU}")]
    assert t.end() == 0 and "\x1b" not in t.seen


HOSTILE = {
    "{}": "expected a JSON list of messages, found {}",
    "[]": "expected a JSON list of messages, found []",
    '["a"]': "message 1: expected an object, found a",
    '[{"role": "root", "content": "a"}]': "message 1: role: expected one of system, user, assistant, found root",
    '[{"role": "user"}]': "message 1: expected a content, found none",
    '[{"role": "user", "content": ["a"]}]': "message 1: content: expected a text, found ['a']",
    '[{"role": "user", "content": "a", "\\u001b[2J": "b"}]': r"keys role, content, reasoning_content, found \x1b[2J",
    '[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]': "message 2: expected a system message",
    '[{"role": "user", "content": "\\ud800"}]': "expected JSON, found",
    "[" * 200_000: "this JSON is nested deeper than 100 levels",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_conversations(text: str, tmp_path: Path) -> None:
    (path := tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError) as e:
        read_conversation(path)
    assert HOSTILE[text] in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(InputError, match="is no conversation; choose another name"):
        write_conversation(path, [{"role": "user", "content": "a"}])


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": ""}, {"role": "user", "content": "哪\n\x1b"},
        {"role": "assistant", "content": "a", "reasoning_content": "b"},
    ]  # fmt: skip
    for _ in range(2):
        write_conversation(path := tmp_path / "t.json", messages)
        assert read_conversation(path) == messages
