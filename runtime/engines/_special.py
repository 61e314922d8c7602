"""The special tokens of a GGUF file's vocabulary, and a long text cut where some of them begin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

LONG = 1 << 15  # characters; a shorter text is not worth a walk through the vocabulary
PART = 1 << 11  # characters of a part, about
USUAL = re.compile("<[^<>]*>")  # two such tokens never overlap, nor does another that has none of < and >


def texts(lib: Any, vocab: Any, count: int, special: bool) -> tuple[str, ...]:
    """Tokens that llama.cpp looks for before it makes others, the longest first: control ones only with `special`."""
    control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
    wanted = lib.LLAMA_TOKEN_ATTR_USER_DEFINED | (control if special else 0)
    ids = [i for i in range(count) if lib.llama_vocab_get_attr(vocab, i) & wanted]
    # bytes that are no UTF-8 become halves of characters, which are in no text
    found = {lib.llama_vocab_get_text(vocab, i).decode(errors="surrogateescape") for i in ids}
    return tuple(sorted(found - {""}, key=len, reverse=True))


def pattern(special: Sequence[str]) -> re.Pattern[str]:
    """Finds one of them, as its one group."""
    return re.compile(f"({'|'.join(map(re.escape, special)) or '(?!)'})")


def cut(text: str, special: Sequence[str]) -> list[str]:
    """Parts whose tokens are together those of the text, each but the first beginning with a special token.

    llama.cpp's time for a text grows with the square of the number of special tokens in it. It takes a text apart at
    these before all else, so cuts are in front of such as overlap with no other. Some of them take the white space in
    front of them with them, so no cut is behind one.
    """
    chosen = {t for t in special if USUAL.fullmatch(t)}
    if any(c in t for t in special if t not in chosen for c in "<>"):
        return [text]
    starts = [0]
    for found in USUAL.finditer(text):
        at = found.start()
        if at - starts[-1] > PART and found[0] in chosen and not text[at - 1].isspace():
            starts.append(at)
    return [text[a:b] for a, b in pairwise([*starts, len(text)])]


def put_around(lib: Any, vocab: Any) -> tuple[list[int], list[int]]:
    """What llama.cpp puts in front of a text and behind it, where a file asks for it."""
    bos = [lib.llama_vocab_bos(vocab)] if lib.llama_vocab_get_add_bos(vocab) else []
    return bos, [lib.llama_vocab_eos(vocab)] if lib.llama_vocab_get_add_eos(vocab) else []
