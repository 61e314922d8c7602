"""The texts that statistics are taken from, cut into windows of token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

SIZE = 512  # tokens of a window
LEAST = 32  # a shorter rest of a text is left out
NAMES = ("en", "zh", "code", "maths")
CHAT = "chat"


def built_in(render: Callable[[Mapping[str, Any]], str | None]) -> dict[str, str]:
    """Name → text of the package's own texts; conversations as the model's template has them, where it takes them."""
    texts = {name: _file(f"{name}.txt") for name in NAMES}
    if chat := "".join(filter(None, map(render, json.loads(_file("chat.json"))))):
        texts[CHAT] = chat
    return texts


def windows(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each text in windows; those of different texts take turns, so that any beginning has of all."""
    cut = [[list(ids[at : at + SIZE]) for at in range(0, len(ids), SIZE)] for ids in texts]
    most = max(map(len, cut), default=0)
    turns = chain.from_iterable([c[n] for c in cut if n < len(c)] for n in range(most))
    return [w for w in turns if len(w) >= LEAST]


def digest(texts: Mapping[str, str]) -> str:
    """SHA-256 of some texts in order."""
    return hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()


def _file(name: str) -> str:
    return (files("sampan.calibrate") / "texts" / name).read_text(encoding="utf-8")
