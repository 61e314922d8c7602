"""tokenizer.model, a SentencePiece model: its protobuf read field by field, in one pass and bounded time.

Messages and fields: sentencepiece_model.proto of google/sentencepiece; wire format:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sampan.errors import InputError, brief, wrong
from sampan.files import read_bytes

from ..tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

NAME = "tokenizer.model"
KINDS = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}
TYPES = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)  # llama.cpp's numbers are SentencePiece's
MOST_SETTINGS = 20_000  # fields beside the pieces
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT = struct.Struct("<f")
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto


@dataclass(frozen=True, slots=True)
class Pieces:
    """BPE with byte fallback: text, score and type by id. `prefix`: a space is put in front of a text."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    prefix: bool
    unknown: str
    bos: str
    eos: str


def read_pieces(path: Path, vocab: int) -> Pieces:
    """A SentencePiece model of at most `vocab` pieces; one that is no BPE over bytes is refused by name."""
    data = read_bytes(path)
    try:
        return _model(path, data, vocab)
    except (IndexError, UnicodeDecodeError, struct.error):
        raise wrong(path, "a SentencePiece model", "bytes that protobuf cannot read; is it truncated?") from None


_Field = tuple[int, int, int, bytes]  # number, wire type, a whole number, bytes


def _fields(data: bytes) -> Iterator[_Field]:
    """The fields of a message; an IndexError where it runs past the end."""
    at, end, nothing = 0, len(data), data[:0]
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value, nothing
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(wire, end + 1)
        if number == 0 or at + length > end:
            raise IndexError
        yield number, wire, 0, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise IndexError


def _model(path: Path, data: bytes, vocab: int) -> Pieces:
    texts, scores, types = list[str](), list[float](), list[int]()
    seen, settings = set[str](), 0
    trainer, normalizer = data[:0], data[:0]
    for number, wire, _, value in _fields(data):
        if number == _PIECE and wire == _BYTES:
            text, score, kind = _piece(value)
            if len(texts) >= vocab:
                raise wrong(path, f"at most vocab_size {vocab} pieces", "more")
            if not text or text in seen:
                raise wrong(f"{path}: piece {len(texts)}", "a text of its own", brief(repr(text)))
            if not math.isfinite(score) or kind not in TYPES:
                expected = "a finite score and a type from 1 to 6"
                raise wrong(f"{path}: piece {len(texts)}", expected, f"{score} and {kind}")
            seen.add(text)
            texts.append(text)
            scores.append(score)
            types.append(kind)
            continue
        settings += 1
        if settings > MOST_SETTINGS:
            raise InputError(f"{path}: more than {MOST_SETTINGS} fields beside its pieces; is it the right file?")
        if number == _TRAINER:
            trainer = value
        elif number == _NORMALIZER:
            normalizer = value
    if not texts:
        raise wrong(path, "a SentencePiece model", "a file without pieces")
    names = _trainer(path, trainer)
    prefix = _normalizer(path, normalizer)
    if UNUSED in types:
        raise wrong(f"{path}: {brief(texts[types.index(UNUSED)])}", "pieces that are in use", "one marked unused")
    if types.count(UNKNOWN) != 1:
        raise wrong(path, "one piece for what is unknown", types.count(UNKNOWN))
    held = {t for t, kind in zip(texts, types, strict=True) if kind == BYTE}
    wanted = {f"<0x{b:02X}>" for b in range(256)}
    if held != wanted:
        raise wrong(path, "a piece of type byte for each byte", f"none for {min(wanted - held)}" if wanted - held
                    else brief(min(held - wanted)))  # fmt: skip
    return Pieces(texts, scores, types, prefix, texts[types.index(UNKNOWN)], *names)


def _piece(data: bytes) -> tuple[str, float, int]:
    rest = data[2 + data[1] :] if data[:1] == b"\n" and data[1] < 128 else b""
    if len(rest) in (5, 7) and rest[0] == 0x15 and (len(rest) == 5 or (rest[5] == 0x18 and rest[6] < 128)):
        kind = rest[6] if len(rest) == 7 else NORMAL  # as SentencePiece writes it, without a loop
        return str(data[2 : 2 + data[1]], "utf-8"), _FLOAT.unpack_from(rest, 1)[0], kind
    text, score, kind = "", 0.0, NORMAL
    for number, wire, whole, value in _fields(data):
        if number == 1 and wire == _BYTES:
            text = str(value, "utf-8")
        elif number == 2 and wire == _FIXED32:
            score = _FLOAT.unpack(value)[0]
        elif number == 3 and wire == _VARINT:
            kind = whole
    return text, score, kind


def _settings(path: Path, data: bytes) -> dict[int, int | bytes]:
    found: dict[int, int | bytes] = {}
    for n, (number, wire, whole, value) in enumerate(_fields(data)):
        if n > MOST_SETTINGS:
            raise InputError(f"{path}: more than {MOST_SETTINGS} settings; is it the right file?")
        found[number] = whole if wire == _VARINT else value
    return found


def _trainer(path: Path, data: bytes) -> tuple[str, str]:
    """Texts of bos and eos, empty where there is none; another kind of model is refused."""
    s = _settings(path, data)
    kind = s.get(3, 1)
    if kind != 2:
        found = KINDS.get(kind, kind) if isinstance(kind, int) else brief(bytes(kind))
        raise wrong(f"{path}: trainer_spec.model_type", "BPE", found)
    if not s.get(35):
        raise wrong(f"{path}: trainer_spec.byte_fallback", "true", "false")
    if s.get(24):
        raise wrong(f"{path}: trainer_spec.treat_whitespace_as_suffix", "false", "true")

    def text(identity: int, name: int, default: str) -> str:
        i, value = s.get(identity, 1), s.get(name, default)
        if isinstance(i, int) and i >= 2**31:  # -1: there is none
            return ""
        return str(value, "utf-8") if isinstance(value, bytes) else str(value)

    return text(41, 46, "<s>"), text(42, 47, "</s>")


def _normalizer(path: Path, data: bytes) -> bool:
    """Whether a space is put in front of a text; what changes texts otherwise is refused."""
    s = _settings(path, data)
    where = f"{path}: normalizer_spec"
    if isinstance(rules := s.get(2, b""), int) or len(rules):
        raise wrong(f"{where}.precompiled_charsmap", "none, since llama.cpp does not normalise such texts", "one")
    if s.get(4, 1):
        raise wrong(f"{where}.remove_extra_whitespaces", "false, as llama.cpp keeps spaces", "true")
    if not s.get(5, 1):
        raise wrong(f"{where}.escape_whitespaces", "true", "false")
    return bool(s.get(3, 1))
