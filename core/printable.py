"""Text of strangers made safe to print: what leaves to a terminal or a page goes through here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

JOINERS = "\u200c\u200d"  # inside words and emoji, where they move nothing


def printable(value: object) -> str:
    """One line that a terminal shows as it stands: controls, line ends, bidi marks and half characters escaped."""
    text = str(value)
    return text if text.isprintable() else "".join(c if _plain(c) else _escape(c) for c in text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, whose line ends and tabs stay."""
    return text if text.isprintable() else "".join(c if c in "\n\t" else printable(c) for c in text)


def printable_json(text: str) -> str:
    """JSON with the same escaped as JSON does, so that it reads back as the same value; its own line ends stay."""
    return re.sub(r"[^\n -~]", lambda m: m[0] if _plain(m[0]) else _json_escape(m[0]), text)


def _plain(c: str) -> bool:
    return c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


def _json_escape(c: str) -> str:
    units = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def excerpt(value: Any, limit: int) -> str:
    """What `repr` begins with (a text as it is), without building the rest of a large value."""
    if isinstance(value, str):
        return value[: limit + 1]
    found, length = [], 0
    for piece in _pieces(value, limit):
        found.append(piece)
        length += len(piece)
        if length > limit:
            break
    return "".join(found)[: limit + 1]


def _pieces(value: Any, limit: int) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for n, (key, item) in enumerate(value.items()):
            yield ", " if n else ""
            yield from _pieces(key, limit)
            yield ": "
            yield from _pieces(item, limit)
        yield "}"
    elif type(value) in (list, tuple):
        yield "[" if type(value) is list else "("
        for n, item in enumerate(value):
            yield ", " if n else ""
            yield from _pieces(item, limit)
        yield "]" if type(value) is list else ",)" if len(value) == 1 else ")"
    elif type(value) in (str, bytes):
        yield repr(value[: limit + 1])
    else:
        yield repr(value)
