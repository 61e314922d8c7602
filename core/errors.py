"""The one exception a user sees: a single line that says where, what was expected and what was found."""

from __future__ import annotations

import errno

from .printable import excerpt, printable

# What to do about a disk that takes no more, by number of the error
MEND = {errno.ENOSPC: "make room", errno.EDQUOT: "make room in your quota", errno.EFBIG: "raise ulimit -f"}


class InputError(Exception):
    """Bad usage or bad input (exit code 2): the checkpoint, the file or the option, never a bug of ours."""


class UnfinishedError(InputError):
    """Stopped by something outside, such as a connection: what is done is kept, and the same call goes on."""


class ContextLengthError(InputError):
    """A prompt that does not fit into the context, or leaves no room for an answer; nothing was computed."""


class ChangedError(InputError):
    """An artifact that was written to while it was open."""


class SchemaError(InputError):
    """A schema or grammar that no answer of this model can be held to."""


class ToolError(SchemaError):
    """Tools whose calls cannot be held to what was asked for."""


def wrong(where: object, expected: object, found: object, hint: str = "") -> InputError:
    """An `InputError` in the project's one form: `where: expected …, found …; hint`."""
    line = f"{where}: expected {expected}, found {found}"
    return InputError(f"{line}; {hint}" if hint else line)


def brief(value: object, limit: int = 120) -> str:
    """`value` as one printable line of at most `limit` characters, for error messages about hostile input."""
    text = printable(excerpt(value, limit))
    return text if len(text) <= limit else text[: limit - 1] + "…"
