"""Texts that llama.cpp reads otherwise than a checkpoint's tokenizer, whatever a file says: announced, not mended.

One list for the notes of a conversion and for `sampan validate`, which tells these differences from others.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

from .. import tiktoken
from ..tokenizer import NORMAL, Tokenizer

# Words that llama.cpp makes control tokens when it loads a vocabulary, whatever their type (src/llama-vocab.cpp)
CONTROL_WORDS = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
        "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
        "▁<MID>", "<|code_middle|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
        "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limit:
    """`what` is a sentence's rest behind "llama.cpp"; `pattern` matches what it reads otherwise."""

    what: str
    pattern: re.Pattern[str]


def limits(t: Tokenizer) -> list[Limit]:
    """What llama.cpp is known to read otherwise with this tokenizer."""
    found = []
    if t.pre == tiktoken.PRE:
        what = "splits words at combining marks (Hindi, Thai) and at \u3007, Kimi's tokenizer does not"
        found.append(Limit(what, _marks()))
    if t.whole:
        words = [w for w in _whole_words(t) if w]
        what = "never makes the tokens of tiktoken.model that stand for whole words only"
        found.append(Limit(what, _any_of(words)))
    words = sorted(w for w in CONTROL_WORDS.intersection(t.tokens) if t.types[t.tokens.index(w)] == NORMAL)
    if words:
        what = f"takes {', '.join(words)} in a prompt for one token, the checkpoint's tokenizer for plain text"
        found.append(Limit(what, _any_of(words)))
    return found


@cache
def _marks() -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c).startswith("M"))
    return re.compile(f"[{re.escape(marks)}\u3007]")


def _any_of(words: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")


def _whole_words(t: Tokenizer) -> list[str]:
    """The texts of tokens that no merge makes."""
    made = {m.replace(" ", "", 1) for m in t.merges}
    letters = {letter: n for n, letter in enumerate(tiktoken.byte_letters())}
    alone = [w for w, kind in zip(t.tokens, t.types, strict=True) if kind == NORMAL and len(w) > 1 and w not in made]
    return [bytes(letters[c] for c in w).decode(errors="ignore") for w in alone if all(c in letters for c in w)]
