"""The checkpoint's tokenizer, set up from its files as transformers does: what every id is held against.

Nothing of convert/ is used here, so that one mistake cannot stand on both sides. Where transformers is installed it
reads the folder itself, except for tiktoken.model, for which it would run the checkpoint's code.
"""

from __future__ import annotations

import base64
import heapq
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sampan.errors import InputError, brief
from sampan.files import read_bytes, read_json, read_json_if_there, there

from .scored import Scored

TIKTOKEN, SENTENCEPIECE = "tiktoken.model", "tokenizer.model"
RESERVED = 258  # ids of special tokens behind the ranks of tiktoken.model
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
KIMI = (  # tokenization_kimi.py of moonshotai's models
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip


class Reader(Protocol):
    """Ids of texts; `name` says who reads."""

    name: str

    def encode(self, text: str, *, special: bool = True, around: bool = True) -> list[int]:
        """Ids of a text, as `Session.tokenize`."""


def open_tokenizer(folder: Path, vocab: int) -> Reader:
    """The most independent reader that there is here; `vocab`: rows of the embedding."""
    if there(folder / TIKTOKEN):
        return Ranked(folder, vocab)
    if there(folder / SENTENCEPIECE) and not there(folder / "tokenizer.json"):
        return Scored(folder)
    try:
        import transformers  # noqa: F401
    except ImportError:
        return Assembled(folder)
    return Transformers(folder)


class Transformers:
    """transformers' own tokenizer of a folder, without code from it."""

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        try:
            self._reader: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as e:  # whatever a stranger's files make it raise
            raise InputError(f"{folder}: transformers cannot read the tokenizer: {brief(str(e))}") from None

    def encode(self, text: str, *, special: bool = True, around: bool = True) -> list[int]:
        ids: list[int] = self._reader(text, add_special_tokens=around, split_special_tokens=not special)["input_ids"]
        return ids


class Assembled:
    """The tokenizers package, with everything that transformers adds from the files beside tokenizer.json."""

    name = "the tokenizers package"

    def __init__(self, folder: Path) -> None:
        from tokenizers import AddedToken, Tokenizer

        config = read_json_if_there(folder / "tokenizer_config.json")
        if not config.get("extra_special_tokens"):
            config["extra_special_tokens"] = config.pop("additional_special_tokens", None)
        if "added_tokens_decoder" not in config:
            older = read_json_if_there(folder / "special_tokens_map.json")
            more = older.get("extra_special_tokens")
            if (told := config["extra_special_tokens"]) and isinstance(more, list):
                key = "additional_special_tokens" if isinstance(told, dict) else "extra_special_tokens"
                older = {k: v for k, v in older.items() if k != "extra_special_tokens"}
                older[key] = more if isinstance(told, dict) else [*told, *more]
            config |= older
        stored = read_json_if_there(folder / "tokenizer.json")
        try:
            kind = _class(folder, config)
            split = {"Qwen2": QWEN2, "Qwen3_5": QWEN3_5}.get(kind)
            self._reader: Any = (
                _qwen(folder, stored, split, config) if split else Tokenizer.from_str(json.dumps(stored))
            )
            if kind == "Llama" and "ByteLevel" not in str(self._reader.pre_tokenizer):
                self._reader.normalizer, self._reader.pre_tokenizer = None, _metaspace(config)
            for token in _added(folder, config, stored if split else {}, kind):
                self._reader.add_tokens([AddedToken(token.pop("content"), **token)])
        except InputError:
            raise
        except Exception as e:  # the package raises plain Exception
            raise InputError(f"{folder}: the tokenizers package cannot read it: {brief(str(e))}") from None
        self._reader.no_truncation()
        self._reader.no_padding()

    def encode(self, text: str, *, special: bool = True, around: bool = True) -> list[int]:
        self._reader.encode_special_tokens = not special
        ids: list[int] = self._reader.encode(text, add_special_tokens=around).ids
        return ids


def _class(folder: Path, config: dict[str, Any]) -> str:
    """Which of the classes with steps of their own AutoTokenizer takes; another name where tokenizer.json holds.

    A name in the files counts unless the model's type is known for wrong ones; without one the type decides.
    """
    model = read_json_if_there(folder / "config.json")
    kind, said = str(model.get("model_type")), config.get("tokenizer_class") or model.get("tokenizer_class")
    remote = config.get("auto_map")
    if isinstance(said, str) and (remote.get("AutoTokenizer") if isinstance(remote, dict) else remote):
        return said.removesuffix("Fast").removesuffix("Tokenizer")
    if config.get("tokenizer_class") == "":
        return ""
    if kind.startswith("glm4") or kind in ("mistral", "minimax_m2", "kimi_k25", "kimi_linear"):
        return ""
    typical = "Qwen3_5" if kind.startswith("qwen3_5") else "Qwen2" if kind.startswith(("qwen2", "qwen3")) else ""
    if not isinstance(said, str) or kind == "qwen2" or (typical == "Qwen3_5" and kind != "qwen3_5_text"):
        return typical
    return said.removesuffix("Fast").removesuffix("Tokenizer")


def _qwen(folder: Path, stored: dict[str, Any], split: str, config: dict[str, Any]) -> Any:
    """These take words and merges from tokenizer.json, or vocab.json and merges.txt; steps they have themselves."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    if stored:
        words, lines = stored["model"]["vocab"], stored["model"]["merges"]
    else:
        words = read_json(folder / "vocab.json")
        lines = [
            m for m in read_bytes(folder / "merges.txt").decode().split("\n") if m and not m.startswith("#version")
        ]
    pairs: Any = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in lines]
    reader = Tokenizer(BPE(words, pairs))
    reader.normalizer, reader.decoder = normalizers.NFC(), decoders.ByteLevel()
    spaced = bool(config.get("add_prefix_space"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)
    reader.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    if stored.get("post_processor"):
        empty = stored | {"model": stored["model"] | {"vocab": {}, "merges": []}, "added_tokens": []}
        reader.post_processor = Tokenizer.from_str(json.dumps(empty)).post_processor
    return reader


def _metaspace(config: dict[str, Any]) -> Any:
    from tokenizers import pre_tokenizers

    scheme = "always" if config.get("legacy") else "first"
    asked = config.get("add_prefix_space") in (True, None)
    return pre_tokenizers.Metaspace("▁", scheme if asked else "never", split=False)


def _added(folder: Path, config: dict[str, Any], stored: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """Tokens to add, in transformers' order, as arguments of AddedToken; some classes name tokens of their own."""
    keys = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    more, further = config.get("extra_special_tokens"), config.get("additional_special_tokens") or []
    more, further = (more, further) if isinstance(more, dict) else ({}, more if more is not None else further)
    usual = {
        "Qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
        "Qwen3_5": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
        "Llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    }
    told = usual.get(kind, {}) | config
    named = [told[k] for k in keys if told.get(k)]
    for key, value in config.items():  # a model's own; an object counts as save_pretrained writes it
        one = isinstance(value, str) or (isinstance(value, dict) and "__type" in value)
        named += [value] if value and one and key.endswith("_token") and key not in keys else []
    named += more.values()
    texts = [*named, *further]
    special = [t["content"] if isinstance(t, dict) else t for t in texts]
    listed: dict[int, dict[str, Any]] = {}
    if "added_tokens_decoder" in config:
        listed |= {
            int(i): {k: v for k, v in t.items() if k != "__type"} for i, t in config["added_tokens_decoder"].items()
        }
    else:
        for token in stored.get("added_tokens", []):
            listed[token["id"]] = {k: v for k, v in token.items() if k != "id"}
        for text, i in read_json_if_there(folder / "added_tokens.json").items():
            listed.setdefault(i, {"content": text, "special": text in special, "normalized": text not in special})
    known = {t["content"] for t in listed.values()}
    for _, token in sorted(listed.items()):
        yield token | ({"special": True} if token["content"] in special[: len(named)] else {})
    yield from ({"content": t, "special": True} for t in special if t not in known)


class Ranked:
    """Kimi's tiktoken.model: pieces by its split, bytes merged by rank (the algorithm of the tiktoken package)."""

    name = "its ranks"

    def __init__(self, folder: Path, vocab: int) -> None:
        from tokenizers import Regex, pre_tokenizers

        lines = [line.split() for line in read_bytes(folder / TIKTOKEN).splitlines() if line]
        self._ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        base = len(self._ranks)
        named = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        special = {i: f"<|reserved_token_{i}|>" for i in range(base, min(base + RESERVED, vocab))}
        special |= {int(i): token["content"] for i, token in named.items()}
        self._added = {text: i for i, text in special.items()}
        self._ordinary = {t["content"] for t in named.values() if not t.get("special")}
        self._split = pre_tokenizers.Split(Regex(KIMI), "isolated")
        self._patterns = {s: self._pattern(self._added if s else self._ordinary) for s in (True, False)}

    @staticmethod
    def _pattern(texts: Any) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)) or r"(?!)")

    def encode(self, text: str, *, special: bool = True, around: bool = True) -> list[int]:
        ids, at = list[int](), 0
        for match in self._patterns[special].finditer(text):
            ids += self._plain(text[at : match.start()])
            ids.append(self._added[match[0]])
            at = match.end()
        return ids + self._plain(text[at:])

    def _plain(self, text: str) -> list[int]:
        pieces = (piece.encode() for piece, _ in self._split.pre_tokenize_str(text)) if text else ()
        return [i for p in pieces for i in ([self._ranks[p]] if p in self._ranks else self._merged(p))]

    def _merged(self, piece: bytes) -> list[int]:
        """The pair of lowest rank is joined, the left one first, until no pair has a rank."""
        ends = list(range(1, len(piece) + 1))  # of the part that begins at each place; 0: no part begins here
        before = list(range(-1, len(piece) - 1))
        heap: list[tuple[int, int, int]] = []

        def push(start: int) -> None:
            middle = ends[start]
            if middle < len(piece) and (rank := self._ranks.get(piece[start : ends[middle]])) is not None:
                heapq.heappush(heap, (rank, start, ends[middle]))

        for start in range(len(piece)):
            push(start)
        while heap:
            _, start, end = heapq.heappop(heap)
            middle = ends[start]
            if not middle or middle >= len(piece) or ends[middle] != end:
                continue  # one of the two has been joined since
            ends[start], ends[middle] = end, 0
            if end < len(piece):
                before[end] = start
            push(start)
            if before[start] >= 0:
                push(before[start])
        return [self._ranks[piece[s:e]] for s, e in enumerate(ends) if e]
