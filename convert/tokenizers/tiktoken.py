"""Kimi's tokenizer: tiktoken.model and tokenizer_config.json, read without running the checkpoint's Python.

tiktoken.model has one line a token, base64 bytes and rank. tiktoken merges the adjacent pair whose bytes have the
lowest rank until none has one; a piece that is a token itself is taken whole. The split regex and the reserved
tokens stand in the checkpoint's Python only: they are the same in every Kimi release and written down here.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sampan.errors import brief, wrong
from sampan.files import read_bytes, read_json

from .. import added
from ..tokenizer import Kind, Tokenizer, Whole
from . import byte_level

NAME = "tiktoken.model"
RESERVED = 258  # ids after the ranks that are special tokens; those beyond the embedding are dropped
LONGEST = 1024  # bytes of a token


@dataclass(frozen=True, slots=True)
class Ranks:
    """`merges` in order of rank; `whole` are tokens that no merging reaches, only a piece that equals them."""

    tokens: dict[bytes, int]
    merges: tuple[tuple[bytes, bytes], ...]
    whole: tuple[bytes, ...]


def read_ranks(path: Path, vocab: int) -> Ranks:
    """Ranks from 0 without a hole, all 256 bytes among them."""
    tokens: dict[bytes, int] = {}
    with io.BytesIO(read_bytes(path)) as f:
        for number, line in enumerate(f, 1):
            where = f"{path}: line {number}"
            if len(line) > 2 * LONGEST:
                raise wrong(where, f"a token of at most {LONGEST} bytes", f"a line of {len(line)}")
            fields = line.split()
            if not fields:
                continue
            token = _decoded(fields[0])
            if len(fields) != 2 or not token or not fields[1].isdigit():
                raise wrong(where, "base64 and a rank", brief(line.decode("latin-1").strip()))
            rank = int(fields[1])
            if rank != len(tokens) or rank >= vocab or token in tokens:
                raise wrong(where, f"a new token of rank {len(tokens)}, below vocab_size {vocab}", brief(rank))
            tokens[token] = rank
    missing = next((b for b in range(256) if bytes([b]) not in tokens), None)
    if missing is not None:
        raise wrong(path, "a token for each byte", f"none for {missing:#04x}")
    merges, whole = [], []
    for token, rank in tokens.items():
        if len(token) > 1:
            parts = _merged(tokens, token, rank)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
            else:
                whole.append(token)
    return Ranks(tokens, tuple(merges), tuple(whole))


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _merged(ranks: Mapping[bytes, int], token: bytes, limit: int) -> list[bytes]:
    """What merging with ranks below `limit` makes of a token: two parts, unless merging cannot reach it.

    The last merge of a token is the same wherever it stands, for no merge across its ends can come before.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, limit) for a, b in pairwise(parts)]
        best = min(pairs)
        if best >= limit:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2): itself where it can be printed."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def form(folder: Path, vocab: int) -> dict[str, Any]:
    """The same tokenizer in the form of the tokenizers package, for an embedding of `vocab` rows."""
    ranks = read_ranks(folder / NAME, vocab)
    letters = byte_letters()

    def text(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": content, **flags, "special": special}
            for i, (content, special) in _added(folder, len(ranks.tokens), vocab).items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": byte_level.KIMI_SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": bool(ranks.whole),
            "vocab": {text(t): i for t, i in ranks.tokens.items()},
            "merges": [[text(a), text(b)] for a, b in ranks.merges],
        },
    }


def _added(folder: Path, base: int, vocab: int) -> dict[int, tuple[str, bool]]:
    """Special tokens by id: those that tokenizer_config.json names, and the reserved ones between them."""
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    kind = config.get("tokenizer_class")
    if kind != "TikTokenTokenizer":
        raise wrong(f"{path}: tokenizer_class", f"TikTokenTokenizer, which {NAME} belongs to", brief(kind))
    named = config.get("added_tokens_decoder") or {}
    if not isinstance(named, dict):
        raise wrong(f"{path}: added_tokens_decoder", "an object", brief(named))
    end = min(base + RESERVED, vocab)
    added = {i: (f"<|reserved_token_{i}|>", True) for i in range(base, end)}
    for key, entry in named.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not re.fullmatch(r"\d{1,9}", key) or not isinstance(content, str) or not content:
            raise wrong(f"{path}: added_tokens_decoder", "an id and its content", brief({key: entry}))
        if not base <= int(key) < end:
            raise wrong(f"{path}: added token {brief(content)}", f"an id from {base} to {end - 1}", key)
        added[int(key)] = (content, bool(entry.get("special")))
    return added


def read(w: Whole) -> Tokenizer:
    """A Tokenizer whose roles are named in tokenizer_config.json."""
    ids = {entry["content"]: entry["id"] for entry in w.parsed["added_tokens"]}
    config = read_json(w.folder / "tokenizer_config.json")
    named = {role: added.content(config.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    t = byte_level.read(w)
    return replace(t, special=t.special | {role: ids[text] for role, text in named.items() if text in ids})


TOKENIZER = Kind(claims=lambda parsed: False, read=read, file=NAME, form=form, alone=True)
