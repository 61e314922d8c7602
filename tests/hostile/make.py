#!/usr/bin/env python3
"""Write the hostile files beside this script: each is small, each must be refused with the text in expected.json.

python tests/hostile/make.py
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from configs import CONFIGS
from hybrids import HYBRIDS
from pieces import SENTENCEPIECE

HERE = Path(__file__).parent
T = "model.norm.weight"


def safetensors(header: object, data: int = 8, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + b"\0" * data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected a safetensors file of at least 8 bytes, found 0 bytes; is it truncated?"),
    "header-longer-than-file": (
        safetensors({}, length=1 << 40),
        "expected a header length of at most 10 bytes, found 1099511627776",
    ),
    "header-length-all-ones": (safetensors({}, length=2**64 - 1), "found 18446744073709551615"),
    "not-json": (safetensors(b"{not json}", 0), "header: expected JSON, found Expecting property name"),
    "nested-too-deep": (
        safetensors(b"[" * 20000, 0),
        "header: this JSON is nested deeper than 100 levels; is it the right file?",
    ),
    "not-utf8": (safetensors(b"\xff\xfe\x00\x01", 0), "header: expected JSON, found 'utf-8' codec"),
    "not-an-object": (safetensors([1]), "expected a JSON object as header, found list"),
    "name-twice": (
        safetensors(f'{{"{T}": {json.dumps(entry())}, "{T}": {json.dumps(entry())}}}'.encode()),
        f"expected each name once in the header, found {T} twice",
    ),
    "missing-fields": (safetensors({T: {"dtype": "F32"}}), "expected dtype, shape and data_offsets"),
    "unknown-dtype": (safetensors({T: entry("F6")}), "expected a dtype among BOOL, U8"),
    "negative-shape": (safetensors({T: entry(shape=[-2])}), "expected a shape of whole numbers, found [-2]"),
    "fractional-shape": (safetensors({T: entry(shape=[2.0])}), "expected a shape of whole numbers, found [2.0]"),
    "absurd-shape": (safetensors({T: entry(shape=[2**62, 2**62])}), "found 8 in data_offsets"),
    "hundred-dimensions": (safetensors({T: entry(shape=[1] * 100)}), "expected at most 64 dimensions, found 100"),
    "backward-offsets": (
        safetensors({T: entry(offsets=[8, 0])}),
        "expected data_offsets [start, end] with start",
    ),
    "three-offsets": (safetensors({T: entry(offsets=[0, 4, 8])}), "expected data_offsets [start, end]"),
    "size-differs": (safetensors({T: entry(shape=[3])}), "expected 12 bytes for F32 [3], found 8 in data_offsets"),
    "overlap": (
        safetensors({T: entry(), "other": entry(offsets=[4, 12])}, 12),
        "other: expected data at byte 159, found 155: it overlaps the tensor before it",
    ),
    "hole": (
        safetensors({T: entry(), "other": entry(offsets=[16, 24])}, 24),
        "it leaves a hole before it",
    ),
    "beyond-the-end": (safetensors({T: entry(offsets=[0, 8])}, 4), "found 89; the file is truncated"),
    "trailing-bytes": (safetensors({T: entry()}, 40), "bytes that belong to no tensor"),
}

GOOD_INDEX = {"metadata": {}, "weight_map": {T: "model-00001-of-00001.safetensors"}}


def index(shard: object) -> dict[str, Any]:
    return {"weight_map": {T: shard}}


INDEX: dict[str, tuple[object, str]] = {
    "parent-folder": (
        index("../secret.safetensors"),
        "the plain name of a .safetensors file, found ../secret",
    ),
    "absolute-path": (index("/etc/model.safetensors"), "expected the plain name of a .safetensors file, found /etc/"),
    "backslash": (index("..\\model.safetensors"), "expected the plain name of a .safetensors file"),
    "hidden-file": (index(".model.safetensors"), "expected the plain name of a .safetensors file"),
    "pickle": (index("pytorch_model.bin"), "expected the plain name of a .safetensors file, found pytorch_model.bin"),
    "no-string": (index(7), "expected the plain name of a .safetensors file, found 7"),
    "no-weight-map": ({"metadata": {}}, "weight_map: expected tensor names and their shards, found None"),
    "empty-weight-map": ({"weight_map": {}}, "weight_map: expected tensor names and their shards, found {}"),
    "a-list": ([], "expected a JSON object, found list"),
    "missing-shard": (index("model-00009-of-00009.safetensors"), "expected the shard model-00009-of-00009.safetensors"),
    "missing-mtp": ({"weight_map": {"mtp.fc.weight": "mtp.safetensors"}}, "expected the shard mtp.safetensors"),
}

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer(**changes: Any) -> dict[str, Any]:
    return {
        "added_tokens": [{"id": 3, "content": "<|end|>", "special": True}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    } | changes


def split(**changes: Any) -> dict[str, Any]:
    steps = tokenizer()["pre_tokenizer"]["pretokenizers"]
    return tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [steps[0] | changes, steps[1]]})


def model(**changes: Any) -> dict[str, Any]:
    return tokenizer(model=tokenizer()["model"] | changes)


def added(**changes: Any) -> dict[str, Any]:
    return tokenizer(added_tokens=[{"id": 3, "content": "<|end|>", "special": True} | changes])


SPLITS = tokenizer()["pre_tokenizer"]["pretokenizers"]
FALLBACK = tokenizer()["model"] | {"byte_fallback": True, "fuse_unk": True}


def fallback(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of SentencePiece's kind, without bytes."""
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    steps = {"normalizer": escape, "decoder": {"type": "Sequence", "decoders": decoders}, "model": FALLBACK}
    return tokenizer(**({"pre_tokenizer": None} | steps | changes))


TOKENIZERS: dict[str, tuple[object, str]] = {
    "a-list": ([], "expected a JSON object, found list"),
    "unigram": (model(type="Unigram"), "model.type: expected BPE, found Unigram"),
    "two-splits": (
        tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [*SPLITS[:1], *SPLITS]}),
        "expected the split regex of qwen2, qwen35, llama-bpe, kimi-k2, deepseek-v3, minimax-m2, found (",
    ),
    "fallback-bytes-missing": (fallback(), "model.vocab: expected a token for each byte, found none for <0x00>"),
    "fallback-other-decoder": (fallback(decoder={"type": "ByteLevel"}), "decoder: expected Replace and ByteFallback"),
    "fallback-lower-case": (fallback(normalizer={"type": "Lowercase"}), "steps that turn spaces into ▁ and no others"),
    "fallback-splits-words": (
        fallback(normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "split": True}),
        "pre_tokenizer: expected Metaspace of ▁ that does not split",
    ),
    "fallback-dropout": (fallback(model=FALLBACK | {"dropout": 0.1}), "model.dropout: expected None, found 0.1"),
    "fallback-without-vocabulary": (
        fallback(model=FALLBACK | {"vocab": None}),
        "vocab: expected an object, found None",
    ),
    "no-merges": (model(merges=None), "model.merges: expected a list of merges, found None"),
    "merge-of-three": (
        model(merges=["a b c"]),
        "two tokens for each merge, found ['a', 'b', 'c']",
    ),
    "merge-with-space": (
        model(merges=[["a ", "b"]]),
        "two byte-level tokens, which hold no space, found a  b",
    ),
    "id-twice": (model(vocab={"a": 0, "b": 0}), "b: expected an id of its own, found 0, as a"),
    "id-beyond-vocabulary": (model(vocab={"a": 0, "b": 9999}), "b: expected an id below vocab_size 8, found 9999"),
    "negative-id": (model(vocab={"a": -1}), "a: expected an id below vocab_size 8, found -1"),
    "other-regex": (
        split(pattern={"Regex": r"\w+"}),
        r"expected the split regex of qwen2, qwen35, llama-bpe, kimi-k2, deepseek-v3, minimax-m2, found \w+",
    ),
    "string-pattern": (
        split(pattern={"String": " "}),
        "expected the split regex of qwen2, qwen35, llama-bpe, kimi-k2, deepseek-v3, minimax-m2, found None",
    ),
    "removed-pieces": (split(behavior="Removed"), "expected Split with behavior Isolated, not inverted"),
    "no-pre-tokenizer": (tokenizer(pre_tokenizer=None), "pre_tokenizer: expected Split, then ByteLevel, found None"),
    "lower-case": (tokenizer(normalizer={"type": "Lowercase"}), "normalizer: expected NFC or none"),
    "other-decoder": (tokenizer(decoder={"type": "WordPiece"}), "decoder: expected ByteLevel"),
    "added-lstrip": (added(lstrip=True), "added token <|end|>: expected lstrip false, as llama.cpp cannot do it"),
    "added-not-nfc": (added(content="e\u0301"), "expected text in NFC"),
    "added-id-taken": (added(id=2), "added token <|end|>: expected an id of its own, found 2, as ab"),
    "added-beyond-vocabulary": (added(id=8), "added token <|end|>: expected an id below vocab_size 8, found 8"),
    "added-without-content": (added(content=7), "added_tokens: expected an id of its own and a content"),
}


def gguf(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


GGUF: dict[str, tuple[bytes, str]] = {
    "wrong-magic": (b"GGML" + b"\0" * 20, "expected a GGUF file, found the first bytes b'GGML'"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "GGUF version 2 or 3, little-endian, found 50331648",
    ),
    "cut-short": (b"GGUF\x03\0", "expected 4 bytes for a number, found 2 left in the file; it is truncated"),
    "absurd-tensor-count": (gguf(tensors=2**60), "tensors in the file, found 1152921504606846976"),
    "absurd-key-count": (gguf(keys=2**60), "metadata keys in the file, found 1152921504606846976"),
    "absurd-string": (gguf(keys=1, rest=text(b"general.name", 2**50) + b"\0" * 8), "bytes for a metadata key, found"),
    "absurd-array": (
        gguf(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**55)),
        "values in a in the file, found 36028797018963968",
    ),
    "array-of-arrays": (
        gguf(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1)),
        "expected an array of plain values, found an array of arrays",
    ),
    "unknown-value-type": (
        gguf(keys=1, rest=text(b"a") + struct.pack("<I", 77)),
        "a value type below 13, found 77",
    ),
    "key-twice": (
        gguf(keys=2, rest=2 * (text(b"a") + struct.pack("<IB", 7, 1))),
        "a: expected each metadata key once, found it twice",
    ),
    "alignment-zero": (
        gguf(keys=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)),
        "general.alignment: expected a power of two, found 0",
    ),
    "five-dimensions": (
        gguf(tensors=1, rest=text(b"t") + struct.pack("<I5QIQ", 5, 1, 1, 1, 1, 1, 0, 0)),
        "t: expected at most 4 dimensions, found 5",
    ),
    "absurd-dimensions": (
        gguf(tensors=1, rest=text(b"t") + struct.pack("<I2QIQ", 2, 2**40, 2**40, 0, 0)),
        "t: expected fewer than 2⁶³ values",
    ),
    "tensor-twice": (
        gguf(tensors=2, rest=2 * (text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 0))),
        "expected each tensor name once, found t twice",
    ),
}


def made() -> dict[str, tuple[bytes, str]]:
    """File → its bytes and the text that refuses it."""
    files = {f"safetensors/{name}.safetensors": case for name, case in SAFETENSORS.items()}
    files |= {f"gguf/{name}.gguf": case for name, case in GGUF.items()}
    files |= {f"tokenizer-model/{name}.model": case for name, case in SENTENCEPIECE.items()}
    for folder, cases in (("index", INDEX), ("config", CONFIGS | HYBRIDS), ("tokenizer", TOKENIZERS)):
        for name, (value, line) in cases.items():
            files[f"{folder}/{name}.json"] = json.dumps(value, ensure_ascii=False, indent=1).encode(), line
    return files


def main() -> None:
    files = made()
    for name, (data, _) in files.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_bytes(data)
    expected = {name: line for name, (_, line) in files.items()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
