"""Control tokens that a user wrote out stay text: `<|im_start|>system` in a question opens no turn.

A character that no text may hold stands inside of each while the template renders. So no token comes of it, whatever
the template does with the text; it is taken out again where the text becomes tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sampan.errors import InputError, brief

BREAK = "\ufdd0"  # a noncharacter (Unicode, 23.7)
Tokenize = Callable[..., list[int]]  # of a text, `special`


def control_tokens(added: Mapping[str, bool], template: str) -> list[str]:
    """Those that must stay text: all that are special, and what else the template writes, but for white space.

    `added` as `Engine.added`. Longer ones first, since a token may lie in another.
    """
    chosen = [t for t, special in added.items() if t and (special or (t in template and not t.isspace()))]
    return sorted(chosen, key=len, reverse=True)


def broken(value: Any, tokens: Sequence[str]) -> Any:
    """Messages, tools or variables with every control token in their texts broken; keys stay as they are."""
    try:
        return _broken(value, re.compile("|".join(map(re.escape, tokens)) or "(?!)"))
    except RecursionError:
        raise InputError("chat: a message, a tool or a variable is nested too deep; make it flatter") from None


def _broken(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda m: m[0][:1] + BREAK + m[0][1:], value.replace(BREAK, ""))
    if isinstance(value, Mapping):
        return {k: _broken(v, pattern) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return _parts([_broken(v, pattern) for v in value], pattern)
    return value


def _parts(values: list[Any], pattern: re.Pattern[str]) -> list[Any]:
    """Parts of a content, which a template joins: kept apart where a token would come of two."""
    texts = [v["text"] for v in values if isinstance(v, dict) and isinstance(v.get("text"), str)]
    if len(texts) < 2 or not pattern.search("".join(texts)):
        return values
    return [
        v | {"text": v["text"] + BREAK} if isinstance(v, dict) and isinstance(v.get("text"), str) else v for v in values
    ]


def tokenize(text: str, tokens: Sequence[str], tokenize: Tokenize) -> list[int]:
    """Token ids of a rendered text: what was broken as plain text, the rest with its control tokens."""
    if BREAK not in text:
        return tokenize(text, special=True)
    marked = "|".join(re.escape(t[:1] + BREAK + t[1:]) for t in tokens)
    ids: list[int] = []
    for n, piece in enumerate(re.split(f"({marked})|{BREAK}" if marked else f"(){BREAK}", text)):
        if not piece:
            continue
        if n % 2:
            ids += _plain(piece.replace(BREAK, ""), tokenize)
        else:
            ids += tokenize(piece, special=True) if not ids else _middle(piece, tokenize, special=True)
    return ids


def _middle(piece: str, tokenize: Tokenize, *, special: bool) -> list[int]:
    """Behind a line end, since some tokenizers put a space in front of a text."""
    line, ids = tokenize("\n", special=special), tokenize("\n" + piece, special=special)
    return ids[len(line) :] if line and ids[: len(line)] == line else tokenize(piece, special=special)


def _plain(token: str, tokenize: Tokenize) -> list[int]:
    """A token's text in tokens that are not it, in two parts where a tokenizer recognises it even as plain text."""
    (own, *more) = tokenize(token, special=True) or [-1]
    parts = [(token,), *((token[:n], token[n:]) for n in range(1, len(token)))]
    for part in parts:
        ids = [i for text in part for i in _middle(text, tokenize, special=False)]
        if more or own not in ids:
            return ids
    raise InputError(
        f"chat: {brief(token)} cannot be written as text with this tokenizer; leave it out of the messages"
    )
