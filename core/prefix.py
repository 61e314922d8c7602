"""Where a tokenizer of SentencePiece's kind puts a space in front, for files whose engine knows one way only.

llama.cpp's SPM puts one in front of a text and behind every special token. In a GGUF file, "missing": there, where a
text does not begin with a space; "first": in front of the whole text, where it does not begin with one. These are the
schemes "always" and "first" of Metaspace in the tokenizers package.
"""

from __future__ import annotations

import re

PREFIX_KEY = "sampan.tokenizer.prefix"
WAYS = ("missing", "first")
SPACES = (" ", "▁")


def put(text: str, special: re.Pattern[str], way: str) -> str:
    """`text` with those spaces. `special`, in one group: the tokens that stand apart in it."""
    parts = special.split(text)
    for n in range(0, len(parts) if way == "missing" else 1, 2):
        if parts[n] and not parts[n].startswith(SPACES):
            parts[n] = " " + parts[n]
    return "".join(parts)
