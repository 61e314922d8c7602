"""A conversation: lines of a pipe, or at a terminal with commands, where Ctrl-C stops an answer; errors end none."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sampan.conversation import read_conversation, write_conversation
from sampan.errors import ContextLengthError, InputError, brief

from ._answer import statistics
from ._out import block, line
from ._reader import reader
from ._terminal import decoded

if TYPE_CHECKING:
    from sampan.runtime import Options, Session, Stream

    from ._answer import Show

SWITCHES = ("enable_thinking", "thinking")  # variables of templates: Qwen's and most; Kimi's and DeepSeek's
NEARLY = 0.8  # share of the context from which on a warning stands behind every answer
Messages = list[dict[str, Any]]


def switch(session: Session, think: bool) -> dict[str, bool]:
    """The variable by which the template switches reasoning; none where it has none."""
    names = [n for n in SWITCHES if any(re.search(rf"\b{n}\b", t) for t in session.chat_templates.values())]
    return dict.fromkeys(names[:1], think)


def fitting(session: Session, messages: Messages, named: dict[str, Any], *, sanitize: bool = False) -> Messages:
    """The messages, without their oldest turns where the context is full; a line says so."""
    left = [dict(m) for m in session.recent(messages, sanitize_control_tokens=sanitize, **named)]
    if gone := len(messages) - len(left):
        full = f"the context of {session.context} tokens was full"
        line(f"{full}: from here on the {gone} oldest message{'s are' if gone > 1 else ' is'} left out", err=True)
    return left


def converse_lines(session: Session, messages: Messages, named: dict[str, Any], options: Options, show: Show) -> None:
    """A turn for each line of standard input, up to an empty one; an error ends it."""
    asked = False
    while text := decoded(sys.stdin.buffer.readline()).strip():
        asked = True
        messages = fitting(session, [*messages, {"role": "user", "content": text}], named)
        messages.append(show(session.chat(messages, options=options, **named)).message())
    if not asked:
        raise click.UsageError("--chat found no line on standard input")


@dataclass(slots=True)
class Talk:
    """A conversation at a terminal. What somebody types or loads opens no turn: control tokens in it stay text."""

    session: Session
    messages: Messages
    named: dict[str, Any]
    options: Options
    show: Show
    last: str = field(default="there was no answer yet", init=False)

    def __call__(self) -> None:
        """Read and answer until Ctrl-D."""
        read = reader([f"/{name}" for name in COMMANDS])
        line("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.", err=True)
        while True:
            try:
                text = read()
                self._take(text)
            except EOFError:
                click.echo(err=True)
                return
            except KeyboardInterrupt:
                block("\nCtrl-D ends", err=True)
            except InputError as e:
                line(f"error: {e}", err=True)

    def _take(self, text: str) -> None:
        if not text.strip():
            return
        if not text.startswith("/"):
            self._ask(text)
            return
        name, _, value = text[1:].partition(" ")
        if name not in COMMANDS:
            hint = "/help lists them; a space in front makes it a message"
            raise InputError(f"/{brief(name, 30)} is no command; {hint}")
        COMMANDS[name].do(self, value.strip())

    def _ask(self, text: str) -> None:
        asked = [*self.messages, {"role": "user", "content": text}]
        asked = fitting(self.session, asked, self.named, sanitize=True)
        try:
            stream = self.session.chat(asked, options=self.options, sanitize_control_tokens=True, **self.named)
        except ContextLengthError as e:
            raise ContextLengthError(f"{e}; /new begins another conversation") from None
        with _stopped_by_ctrl_c(stream):
            answer = self.show(stream)
        usage = answer.usage
        used = usage.prompt_tokens + usage.completion_tokens
        full = f"{used} of {self.session.context} tokens of context"
        self.last = f"{statistics(usage, stream.seed)}; {full}"
        if answer.finish_reason == "cancelled":
            line("stopped", err=True)
        if answer.text or answer.finish_reason != "cancelled":
            self.messages = [*asked, answer.message()]
        if used > NEARLY * self.session.context:
            line(f"{full} are used; where it is full the oldest turns are left out; /new begins another", err=True)


@contextlib.contextmanager
def _stopped_by_ctrl_c(stream: Stream) -> Iterator[None]:
    """Ctrl-C lets the answer end where it is; a second one breaks it off."""
    pressed = False

    def stop(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        stream.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True, slots=True)
class Command:
    """`value` names what stands behind the command, `help` what it does."""

    value: str
    help: str
    do: Callable[[Talk, str], None]


def _help(talk: Talk, value: str) -> None:
    width = max(len(name) + len(c.value) for name, c in COMMANDS.items()) + 4
    lines = [f"{f'/{name} {c.value}':{width}}{c.help}" for name, c in COMMANDS.items()]
    keys = "Alt-Enter, or a backslash at the end of a line, begins another line of a message."
    block("\n".join([*lines, keys]), err=True)


def _system(talk: Talk, value: str) -> None:
    rest = [m for m in talk.messages if m["role"] != "system"]
    if value:
        talk.messages = [{"role": "system", "content": value}, *rest]
    elif len(rest) < len(talk.messages):
        block(talk.messages[0]["content"], err=True)
    else:
        line("there is no system message; /system TEXT sets one", err=True)


def _save(talk: Talk, value: str) -> None:
    if not talk.messages:
        raise InputError("/save: there is no message yet")
    path = _path(value, "/save")
    try:
        write_conversation(path, talk.messages)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise InputError(f"{path}: cannot be written: {reason}") from None
    line(f"{path}: {_counted(talk.messages)}", err=True)


def _load(talk: Talk, value: str) -> None:
    path = _path(value, "/load")
    messages: Messages = list(read_conversation(path))
    tokens = talk.session.tokenize_chat(messages, sanitize_control_tokens=True, **talk.named)
    talk.messages = messages
    room = f"{len(tokens)} of {talk.session.context} tokens of context"
    line(f"{path}: {_counted(messages)}, {room}", err=True)


def _path(value: str, command: str) -> Path:
    if not value:
        raise InputError(f"{command}: name a file, as in {command} talk.json")
    try:
        return Path(value).expanduser()
    except RuntimeError as e:  # ~somebody
        raise InputError(f"{command}: {e}") from None


def _counted(messages: Messages) -> str:
    return f"{len(messages)} message{'s' * (len(messages) != 1)}"


def _stats(talk: Talk, value: str) -> None:
    line(talk.last, err=True)


def _think(talk: Talk, value: str) -> None:
    if value not in ("on", "off"):
        raise InputError(f"/think: on or off, not {brief(value, 30) or 'nothing'}")
    if not (found := switch(talk.session, value == "on")):
        raise InputError("/think: this model's chat template cannot switch reasoning")
    talk.named = talk.named | found


def _new(talk: Talk, value: str) -> None:
    talk.messages = [m for m in talk.messages if m["role"] == "system"]


COMMANDS = {
    "new": Command("", "begin another conversation; the system message stays", _new),
    "system": Command("TEXT", "set the system message; without TEXT show it", _system),
    "think": Command("on|off", "switch reasoning, where the model can", _think),
    "stats": Command("", "show counts and speeds of the last answer, and how full the context is", _stats),
    "save": Command("FILE", "save the conversation as JSON", _save),
    "load": Command("FILE", "go on with a saved conversation", _load),
    "help": Command("", "show this", _help),
}
