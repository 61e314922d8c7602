"""What somebody types: on a terminal that can, with editing and history; on others plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from ._terminal import colours, decoded

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent

PROMPT, MORE = "> ", ". "
Read = Callable[[], str]  # raises EOFError at the end, KeyboardInterrupt for Ctrl-C


def reader(words: Sequence[str]) -> Read:
    """What gives the next text; Tab completes `words`. A line that ends with a backslash goes on in the next one."""
    editing = sys.stdin.isatty() and colours(sys.stdout)
    return _edited(words) if editing else _plain


def _plain() -> str:
    text = ""
    while True:
        click.echo(MORE if text else PROMPT, nl=False, err=True)
        raw = sys.stdin.buffer.readline()
        if not raw:
            raise EOFError
        text += decoded(raw).rstrip("\r\n")
        if not text.endswith("\\"):
            return text
        text = text[:-1] + "\n"


def _edited(words: Sequence[str]) -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter", filter=Condition(lambda: get_app().current_buffer.document.text_before_cursor.endswith("\\")))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.delete_before_cursor(1)
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        key_bindings=keys, completer=WordCompleter(list(words), sentence=True), complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE, reserve_space_for_menu=0, prompt_continuation=MORE,
    )  # fmt: skip
    return lambda: session.prompt(PROMPT)
