"""The texts that drift is measured on, cut into windows of token ids.

A window's first half is context that is not scored; its second half is. Windows start half a window apart,
so every scored position is scored once and none has less than half a window of context.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sampan.errors import InputError, wrong

SIZE, STRIDE = 256, 128  # tokens
WINDOWS = 32  # of a domain, by default
FEW, SHORT = 8, 32  # the same where an engine is slow, and the positions of a chunk there
LONG_SCORED = 128  # positions of a long document that count as one chunk
DOMAINS = ("zh", "en", "code", "chat")
LONG = ("long_zh", "long_en")
RESERVED = ("mean", "each")  # what limits call the domains' mean and every one of them
MAX_TEXT = 50_000_000  # bytes of a user's file


@dataclass(frozen=True, slots=True)
class Domain:
    """Windows of one kind of text; the logits of the last `scored` tokens but one of a window are compared.

    `chunk`: positions in one chunk of the bootstrap.
    """

    name: str
    windows: tuple[tuple[int, ...], ...]
    scored: int
    chunk: int


def built_in(name: str) -> str:
    """A text of the package."""
    return (files("sampan.validate") / "texts" / name).read_text(encoding="utf-8")


def conversations() -> list[dict[str, Any]]:
    """The package's conversations: `messages` and, in some, `tools`."""
    parsed: list[dict[str, Any]] = json.loads(built_in("chat.json"))
    return parsed


def domain_texts(render: Callable[[Mapping[str, Any]], str | None], long: bool) -> dict[str, str]:
    """Name → text of the built-in domains; without a conversation that the template takes there is no chat domain."""
    texts = {name: built_in(f"{name}.txt") for name in DOMAINS if name != "chat"}
    if chat := "".join(filter(None, map(render, conversations()))):
        texts["chat"] = chat
    if long:
        texts |= {name: built_in(f"{name}.txt") for name in LONG}
    return texts


def user_texts(paths: Sequence[Path]) -> dict[str, str]:
    """Name → text of the user's files; the name is the file's stem."""
    texts: dict[str, str] = {}
    for path in paths:
        try:
            with path.open("rb") as f:  # a pipe too
                raw = f.read(MAX_TEXT + 1)
            if len(raw) > MAX_TEXT:
                raise wrong(path, f"at most {MAX_TEXT} bytes of text", "more")
            text = raw.decode("utf-8")
        except OSError as e:
            raise InputError(f"{path}: cannot be read: {e.strerror}") from None
        except UnicodeDecodeError as e:
            raise wrong(path, "text in UTF-8", f"the byte 0x{e.object[e.start]:02x} at {e.start}") from None
        if path.stem in RESERVED or "=" in path.stem:
            raise wrong(path, f"a name other than {' and '.join(RESERVED)}, without '='", path.stem, "rename it")
        if path.stem in texts:
            raise wrong("--text", "files with names of their own", f"{path.stem} twice")
        texts[path.stem] = text
    return texts


def cut(name: str, ids: Sequence[int], limit: int, *, short: bool = False) -> Domain:
    """The first `limit` windows of a text; a built-in long document is one window. `short`: in chunks of SHORT."""
    if name in LONG:
        scored = (len(ids) - STRIDE) // LONG_SCORED * LONG_SCORED
        return Domain(name, (tuple(ids[: STRIDE + scored]),), scored, LONG_SCORED)
    starts = range(0, len(ids) - SIZE + 1, STRIDE)[:limit]
    if not starts:
        raise wrong(f"text {name}", f"at least {SIZE} tokens", len(ids), "give a longer text")
    return Domain(name, tuple(tuple(ids[s : s + SIZE]) for s in starts), STRIDE, SHORT if short else STRIDE)
