"""What a terminal and a pipe bring: bytes that are no UTF-8, streams that are closed or full, no wish for colours."""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Any, TextIO

import click


def colours(stream: TextIO | None = None) -> bool:
    """Whether colours and bars are wanted on stderr, or another stream (https://no-color.org)."""
    return (stream or sys.stderr).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class ReaderLeftError(Exception):
    """Nobody reads standard output any more. No OSError: click would end with exit code 1, that of a failed gate."""


class _Output(io.FileIO):
    """Standard output or error. A failure of the first says so; what cannot be said on the second stops no work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            if self.fileno() == 1:
                raise ReaderLeftError from None
        except OSError as e:
            if self.fileno() == 1:
                e.filename = "standard output"
                raise
        return len(data)


def prepare_streams() -> None:
    """Give closed standard streams a place, so that no file that is opened later takes their number.

    What a stream's encoding lacks is written as an escape.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            place = os.open(os.devnull, os.O_RDWR)
            if place != number:
                os.dup2(place, number)
                os.close(place)
            raw = io.FileIO(number, "w" if number else "r", closefd=False)
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw) if number else io.BufferedReader(raw), "utf-8"))
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        lines = number == 2 or old.line_buffering
        out = io.BufferedWriter(_Output(number, "w", closefd=False))
        new = io.TextIOWrapper(out, encoding=old.encoding, errors="backslashreplace", line_buffering=lines)
        setattr(sys, name, new)


def abandon_output() -> None:
    """Let what is left for a standard output that cannot be written go nowhere: Python writes it when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ReaderLeftError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def plain_text(argument: str) -> str:
    """An argument whose bytes are no UTF-8, with replacement characters for them."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def piped_text() -> str:
    """All of standard input where it is a pipe, a file or a socket; nothing where it is a terminal or a device."""
    mode = os.fstat(0).st_mode
    piped = stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
    return decoded(sys.stdin.buffer.read()) if piped else ""


def decoded(raw: bytes) -> str:
    """Bytes of standard input as text, and a warning where they are no UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        click.echo("standard input is not UTF-8: bytes that are none became replacement characters", err=True)
        return raw.decode(errors="replace")
