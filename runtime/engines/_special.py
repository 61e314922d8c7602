"""The special tokens of a GGUF file's vocabulary, and a long text cut where some of them begin."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

LONG = 1 << 15  # characters; a shorter text is not worth a walk through the vocabulary
PART = 1 << 11  # characters of a part, about


def pattern(lib: Any, vocab: Any, count: int, special: bool) -> re.Pattern[str]:
    """Finds, as its one group, a token that llama.cpp looks for before it makes others: control ones with `special`."""
    control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
    wanted = lib.LLAMA_TOKEN_ATTR_USER_DEFINED | (control if special else 0)
    ids = [i for i in range(count) if lib.llama_vocab_get_attr(vocab, i) & wanted]
    texts = sorted({t for i in ids if (t := lib.llama_vocab_get_text(vocab, i).decode())}, key=len, reverse=True)
    if not texts:
        return re.compile("((?!))")
    first = "".join(sorted({re.escape(t[0]) for t in texts}))  # of a thousand tokens, most begin alike
    return re.compile(f"(?=[{first}])({'|'.join(map(re.escape, texts))})")


def cut(text: str, special: re.Pattern[str]) -> list[str]:
    """Parts whose tokens are together those of the text, each but the first beginning with a special token.

    llama.cpp's time for a text grows with the square of the number of special tokens in it. It takes a text apart at
    these before all else. Some of them take the white space in front of them with them, so no cut is behind one.
    """
    starts = [0]
    for found in special.finditer(text):
        at = found.start()
        if at - starts[-1] > PART and not text[at - 1].isspace():
            starts.append(at)
    return [text[a:b] for a, b in pairwise([*starts, len(text)])]


def put_around(lib: Any, vocab: Any) -> tuple[list[int], list[int]]:
    """What llama.cpp puts in front of a text and behind it, where a file asks for it."""
    bos = [lib.llama_vocab_bos(vocab)] if lib.llama_vocab_get_add_bos(vocab) else []
    return bos, [lib.llama_vocab_eos(vocab)] if lib.llama_vocab_get_add_eos(vocab) else []
