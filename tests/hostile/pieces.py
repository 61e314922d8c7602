"""SentencePiece models that must be refused, and what makes them."""

from __future__ import annotations

import struct
from typing import Any


def field(number: int, value: int | bytes | float) -> bytes:
    """A protobuf field: a varint, bytes or a float."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def piece(text: bytes, score: float = -1.0, kind: int = 1) -> bytes:
    return field(1, field(1, text) + field(2, score) + field(3, kind))


BYTES = b"".join(piece(f"<0x{b:02X}>".encode(), 0.0, 6) for b in range(256))
START = piece(b"<unk>", 0.0, 2) + piece(b"<s>", 0.0, 3) + piece(b"</s>", 0.0, 3)
TRAINER = {3: 2, 35: 1}
NORMALIZER = {3: 1, 4: 0}


def spm(words: bytes = b"", start: bytes = START + BYTES, trainer: Any = (), normalizer: Any = ()) -> bytes:
    """A SentencePiece model of BPE over bytes."""
    specs = [TRAINER | dict(trainer), NORMALIZER | dict(normalizer)]
    return start + words + b"".join(field(2 + n, b"".join(field(*f) for f in s.items())) for n, s in enumerate(specs))


GOOD_SPM = spm(piece(b"a") + piece(b"b") + piece(b"ab"))

SENTENCEPIECE: dict[str, tuple[bytes, str]] = {
    "unigram": (spm(trainer={3: 1}), "trainer_spec.model_type: expected BPE, found Unigram"),
    "word": (spm(trainer={3: 3}), "trainer_spec.model_type: expected BPE, found Word"),
    "kind-of-its-own": (spm(trainer={3: 99}), "trainer_spec.model_type: expected BPE, found 99"),
    "kind-by-default": (START + BYTES, "trainer_spec.model_type: expected BPE, found Unigram"),
    "without-byte-fallback": (spm(trainer={35: 0}), "trainer_spec.byte_fallback: expected true, found false"),
    "truncated": (GOOD_SPM[:-3], "a SentencePiece model, found bytes that protobuf cannot read; is it truncated?"),
    "truncated-in-a-piece": (GOOD_SPM[:40], "bytes that protobuf cannot read; is it truncated?"),
    "empty": (b"", "a SentencePiece model, found a file without pieces"),
    "text": ("".join(f"YQ== {n}\n" for n in range(9)).encode(), "bytes that protobuf cannot read"),
    "endless-varint": (b"\x0a" + b"\xff" * 40, "bytes that protobuf cannot read"),
    "absurd-length": (b"\x0a" + varint(2**62), "bytes that protobuf cannot read"),
    "group": (b"\x0b" * 8, "bytes that protobuf cannot read"),
    "not-utf8": (spm(piece(b"\xff\xfe")), "bytes that protobuf cannot read"),
    "many-pieces": (spm(b"".join(piece(b"%d" % n) for n in range(100))), "expected at most vocab_size 300 pieces"),
    "many-empty-pieces": (b"\x0a\x00" * 1000, "piece 0: expected a text of its own, found ''"),
    "many-settings": (b"\x20\x01" * 20_001, "more than 20000 fields beside its pieces; is it the right file?"),
    "many-settings-inside": (field(2, b"\x20\x01" * 20_002) + START, "more than 20000 settings"),
    "score-nan": (
        spm(piece(b"a", float("nan"))),
        "piece 259: expected a finite score and a type from 1 to 6, found nan",
    ),
    "score-infinite": (spm(piece(b"a", float("inf"))), "expected a finite score and a type from 1 to 6, found inf"),
    "unknown-type": (spm(piece(b"a", kind=7)), "a finite score and a type from 1 to 6, found -1.0 and 7"),
    "duplicate": (spm(piece(b"a") + piece(b"a")), "piece 260: expected a text of its own, found 'a'"),
    "missing-byte": (spm(start=START + BYTES[:-17]), "a piece of type byte for each byte, found none for <0xFF>"),
    "missing-bytes": (spm(start=START), "a piece of type byte for each byte, found none for <0x00>"),
    "byte-of-another-name": (spm(piece(b"<0xfff>", kind=6)), "a piece of type byte for each byte, found <0xfff>"),
    "without-unknown": (spm(start=START[14:] + BYTES), "expected one piece for what is unknown, found 0"),
    "unused": (spm(piece(b"a", kind=5)), "a: expected pieces that are in use, found one marked unused"),
    "charsmap": (spm(normalizer={2: b"x"}), "precompiled_charsmap: expected none, since llama.cpp does not normalise"),
    "extra-spaces": (spm(normalizer={4: 1}), "remove_extra_whitespaces: expected false, as llama.cpp keeps spaces"),
    "suffix": (spm(trainer={24: 1}), "treat_whitespace_as_suffix: expected false, found true"),
}
