"""What a terminal and a pipe bring: bytes that are no UTF-8, streams that are closed, no wish for colours."""

from __future__ import annotations

import os
import stat
import sys

import click


def colours() -> bool:
    """Whether colours and bars are wanted on stderr (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def plain_text(argument: str) -> str:
    """An argument whose bytes are no UTF-8, with replacement characters for them."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def piped_text() -> str | None:
    """All of standard input where it is a pipe or a file, None where it is a terminal, closed or a device."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    return decoded(sys.stdin.buffer.read()) if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) else None


def decoded(raw: bytes) -> str:
    """Bytes of standard input as text, and a warning where they are no UTF-8."""
    text = raw.decode("utf-8", errors="replace")
    if "\ufffd" in text and "\ufffd".encode() not in raw:
        click.echo("standard input is not UTF-8: bytes that are none became replacement characters", err=True)
    return text
