"""SentencePiece's BPE as the sentencepiece package computes it, from tokenizer.model alone: a reference of its own.

Neighbours whose joined text has the highest score are joined, the left ones first; what is no piece in the end falls
apart into bytes. The file is read by the protobuf package.
"""

from __future__ import annotations

import heapq
import re
from functools import cache
from pathlib import Path
from typing import Any

from sampan.errors import InputError, brief
from sampan.files import read_bytes, read_json_if_there

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


class Scored:
    """A tokenizer of scores. `special`, `around`: as `Session.tokenize`."""

    name = "its scores"

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.model"
        model = _model()()
        try:
            model.ParseFromString(read_bytes(path))
        except Exception as e:  # whatever the package raises
            raise InputError(f"{path}: protobuf cannot read it: {brief(str(e))}") from None
        config = read_json_if_there(folder / "tokenizer_config.json")
        kinds = {p.piece: p.type for p in model.pieces}
        self._ids = {p.piece: i for i, p in enumerate(model.pieces)}
        self._scores = {p.piece: p.score for p in model.pieces if p.type in (NORMAL, USER_DEFINED)}
        whole = [t for t, k in kinds.items() if k == USER_DEFINED]
        self._whole = re.compile(_any(whole)) if whole else None
        self._added, ordinary = self._names(folder, config, kinds)
        self._apart = {True: re.compile(f"({_any(self._added)})"), False: re.compile(f"({_any(ordinary)})")}
        llama = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
        llama = llama and read_json_if_there(folder / "config.json").get("model_type") != "mistral"
        self._prefix = model.normalizer_spec.add_dummy_prefix
        self._legacy = config.get("legacy", not llama)
        self._around = [
            [self._added[_content(config.get(f"{role}_token")) or default]] if config.get(f"add_{role}_token") else []
            for role, default in (("bos", "<s>"), ("eos", "</s>"))
        ]

    def _names(
        self, folder: Path, config: dict[str, Any], kinds: dict[str, int]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Tokens that stand apart from text, and those of them that do so even where no special ones are looked for."""
        added = {t: self._ids[t] for t, k in kinds.items() if k in (UNKNOWN, CONTROL)}
        listed = {i: t for t, i in read_json_if_there(folder / "added_tokens.json").items()}
        ordinary = dict[str, int]()
        named = {_content(config.get(k)) for k in NAMED}
        for i, token in (config.get("added_tokens_decoder") or {}).items():
            listed[int(i)] = token["content"]
            if not token.get("special") and token["content"] not in named:
                ordinary[token["content"]] = int(i)
        return added | {t: i for i, t in listed.items()}, ordinary

    def encode(self, text: str, *, special: bool = True, around: bool = True) -> list[int]:
        """Ids of a text."""
        ids = list[int]()
        for n, part in enumerate(self._apart[special].split(text)):
            if n % 2:
                ids.append(self._added[part])
            elif part:
                part = part.replace(" ", "▁")
                if self._prefix and (self._legacy or (n == 0 and not part.startswith("▁"))):
                    part = "▁" + part
                ids += self._plain(part)
        bos, eos = self._around
        return [*bos, *ids, *eos] if around else ids

    def _plain(self, text: str) -> list[int]:
        ids, at = list[int](), 0
        for match in self._whole.finditer(text) if self._whole else ():
            ids += [*self._joined(text[at : match.start()]), self._ids[match[0]]]
            at = match.end()
        return ids + self._joined(text[at:])

    def _joined(self, text: str) -> list[int]:
        parts: list[str] = list(text)
        before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
        heap: list[tuple[float, int, int]] = []

        def push(left: int) -> None:
            right = after[left] if left >= 0 else len(parts)
            if right < len(parts) and (score := self._scores.get(parts[left] + parts[right])) is not None:
                heapq.heappush(heap, (-score, left, len(parts[left] + parts[right])))

        for left in range(len(parts) - 1):
            push(left)
        while heap:
            _, left, length = heapq.heappop(heap)
            right = after[left]
            if not parts[left] or right >= len(parts) or len(parts[left] + parts[right]) != length:
                continue  # one of the two has been joined since
            parts[left], parts[right], after[left] = parts[left] + parts[right], "", after[right]
            if after[right] < len(parts):
                before[after[right]] = left
            push(before[left])
            push(left)
        return [i for part in parts if part for i in self._piece(part)]

    def _piece(self, part: str) -> list[int]:
        if part in self._scores:
            return [self._ids[part]]
        return [self._ids[f"<0x{b:02X}>"] for b in part.encode()]


def _any(texts: Any) -> str:
    return "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)) or "(?!)"


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


@cache
def _model() -> Any:
    """ModelProto, as much of it as is read (sentencepiece_model.proto of google/sentencepiece)."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="sampan/spm.proto", package="sampan.spm")
    kind = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for label, number, sort, more in fields:
            f = made.field.add(name=label, number=number, type=sort, label=kind.LABEL_OPTIONAL)
            if sort == kind.TYPE_MESSAGE:
                f.type_name = f".sampan.spm.{more}"
                f.label = kind.LABEL_REPEATED if label == "pieces" else f.label
            elif more:
                f.default_value = more

    message(
        "Piece",
        ("piece", 1, kind.TYPE_STRING, ""),
        ("score", 2, kind.TYPE_FLOAT, ""),
        ("type", 3, kind.TYPE_INT32, "1"),
    )
    message("Normalizer", ("add_dummy_prefix", 3, kind.TYPE_BOOL, "true"))
    message("Model", ("pieces", 1, kind.TYPE_MESSAGE, "Piece"), ("normalizer_spec", 3, kind.TYPE_MESSAGE, "Normalizer"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sampan.spm.Model"))
