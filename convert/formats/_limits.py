"""Texts that llama.cpp reads otherwise than a checkpoint's tokenizer, whatever a file says: announced, not mended.

One list for the notes of a conversion and for `sampan validate`, which tells these differences from others.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

from ..generation import END_WORDS
from ..tokenizer import CONTROL, NORMAL, USER_DEFINED, Tokenizer
from ..tokenizers.byte_level import KIMI
from ..tokenizers.tiktoken import byte_letters

# Words that llama.cpp makes control tokens when it loads a vocabulary, whatever their type (src/llama-vocab.cpp)
CONTROL_WORDS = frozenset(
    (
        *END_WORDS,
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
        "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
        "▁<MID>", "<|code_middle|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
        "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    )
)  # fmt: skip
SHOWN_WORDS = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))  # and these user-defined
# Beside a word of each, `<|end|>` is one of SHOWN_WORDS too; beside PLAIN_END `</s>` stays an ordinary word
CALLS, CLOSINGS = frozenset(("<|call|>", "<|calls|>")), frozenset(("<|return|>", "<|flush|>"))
PLAIN_END = "<|tool_response>"
WATCHED = CONTROL_WORDS | SHOWN_WORDS | CALLS | CLOSINGS | {PLAIN_END, "<|end|>", "</s>"}


@dataclass(frozen=True, slots=True)
class Limit:
    """`what` is a sentence's rest behind "llama.cpp"; `pattern` matches what it reads otherwise."""

    what: str
    pattern: re.Pattern[str]


def limits(t: Tokenizer) -> list[Limit]:
    """What llama.cpp is known to read otherwise with this tokenizer."""
    found = []
    if t.pre == KIMI:
        what = "splits words at combining marks (Hindi, Thai) and at \u3007, Kimi's tokenizer does not"
        found.append(Limit(what, _marks()))
    if t.whole:
        words = [w for w in _whole_words(t) if w]
        what = "never makes the tokens of tiktoken.model that stand for whole words only"
        found.append(Limit(what, _any_of(words)))
    changed = retyped(t)
    words = sorted(t.tokens[i] for i in changed if t.types[i] == NORMAL)
    if words:
        what = f"takes {', '.join(words)} in a prompt for one token, the checkpoint's tokenizer for plain text"
        found.append(Limit(what, _any_of(words)))
    shown = sorted(t.tokens[i] for i, kind in changed.items() if t.types[i] == CONTROL and kind == USER_DEFINED)
    if shown:
        what = f"writes {', '.join(shown)} in an answer, transformers leaves them out as special tokens"
        found.append(Limit(what, _any_of(shown)))
    return found


def retyped(t: Tokenizer) -> dict[int, int]:
    """Id → type of every word that llama.cpp gives another type than the file when it loads the vocabulary."""
    ids = {word: i for i, word in enumerate(t.tokens) if word in WATCHED}
    types = dict.fromkeys(CONTROL_WORDS, CONTROL) | dict.fromkeys(SHOWN_WORDS, USER_DEFINED)
    if CALLS & ids.keys() and CLOSINGS & ids.keys():
        types["<|end|>"] = USER_DEFINED
    if PLAIN_END in ids:
        types["</s>"] = NORMAL
    return {ids[w]: kind for w, kind in types.items() if w in ids and t.types[ids[w]] != kind}


def text_tokens(t: Tokenizer) -> list[int]:
    """Ids that llama.cpp keeps to itself as control tokens, though they are not special and belong to an answer."""
    return sorted({*t.text_tokens, *(i for i, kind in retyped(t).items() if kind == CONTROL)})


@cache
def _marks() -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c).startswith("M"))
    return re.compile(f"[{re.escape(marks)}\u3007]")


def _any_of(words: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


def _whole_words(t: Tokenizer) -> list[str]:
    """The texts of tokens that no merge makes."""
    made = {m.replace(" ", "", 1) for m in t.merges}
    letters = {letter: n for n, letter in enumerate(byte_letters())}
    alone = [w for w, kind in zip(t.tokens, t.types, strict=True) if kind == NORMAL and len(w) > 1 and w not in made]
    return [bytes(letters[c] for c in w).decode(errors="ignore") for w in alone if all(c in letters for c in w)]
