"""Byte-level BPE (GPT-2's): tokenizer.json, or vocab.json and merges.txt.

The split of a text into words is recognised by its regular expressions, not by hashing the ids of a test string, so a
fine-tune with added tokens is read like its base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sampan.errors import InputError, brief, wrong
from sampan.files import read_bytes, read_json, there

from .. import added
from ..tokenizer import (
    CONTROL,
    Kind,
    Tokenizer,
    Whole,
    added_tokens,
    read_merges,
    section,
    special_tokens,
    vocabulary,
)

KIMI = "kimi-k2"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI_SPLIT = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_TAIL}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_TAIL}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
CASES = "minimax-m2"  # GPT-4o's split too; llama.cpp has another under this name, see formats/_llama.py
# llama.cpp's name for a pre-tokenizer (src/llama-vocab.cpp), by the regexes that split a text one after the other
PRE_TOKENIZERS = {
    (added.QWEN2_SPLIT,): "qwen2",
    (added.QWEN3_5_SPLIT,): "qwen35",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "llama-bpe",
    (KIMI_SPLIT,): KIMI,
    (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
        "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ): "deepseek-v3",
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): CASES,
}
COMPOSES = ("qwen2", "qwen35")  # those whose text sampan.runtime brings into NFC unless the file says otherwise
WHOLE = ("llama-bpe",)  # for these llama.cpp takes a word that is a token before any merge, and does not normalise


def read(w: Whole) -> Tokenizer:
    """A Tokenizer of a tokenizer.json whose words are made of bytes."""
    parsed, path = w.parsed, w.path
    model = section(parsed, "model", path)
    pre, nfc = _pre_tokenizer(parsed, path), _normalizes(parsed, path)
    whole = pre == KIMI and model.get("ignore_merges") is True
    if pre in WHOLE and (model.get("ignore_merges") is not True or nfc):
        found = f"{model.get('ignore_merges')} with normalizer {brief(parsed.get('normalizer'))}"
        raise wrong(f"{path}: model.ignore_merges", f"True without a normalizer, as llama.cpp's {pre} does", found)
    for key, harmless in (("dropout", None), ("ignore_merges", whole or pre in WHOLE),
                          ("continuing_subword_prefix", ""), ("end_of_word_suffix", "")):  # fmt: skip
        if model.get(key) not in (harmless, None):
            raise wrong(f"{path}: model.{key}", repr(harmless), brief(model[key]))
    more = added_tokens(parsed, path)
    tokens, types = vocabulary(model, more, w.vocab, path)
    special, add = special_tokens(w, tokens)
    if pre in WHOLE:
        add.setdefault("bos", False)  # without the key llama.cpp adds one
    text_tokens = tuple(i for i, e in more.items() if types[i] == CONTROL and not e.get("special"))
    return Tokenizer(pre, tokens, types, read_merges(model, path), special, add, whole, nfc, text_tokens)


def form(folder: Path, vocab: int) -> dict[str, Any]:
    """vocab.json and merges.txt, as Qwen2Tokenizer and Qwen3_5Tokenizer read them."""
    words, merges, config = folder / "vocab.json", folder / "merges.txt", added.read_config(folder)
    if not there(merges) or added.own_split(config, folder) is None:
        raise InputError(
            f"{folder}: no tokenizer.json, and vocab.json is not read for tokenizer_class "
            f"{brief(config.get('tokenizer_class'))}; load the tokenizer with transformers and save it with "
            "save_pretrained() first"
        )
    if config.get("add_bos_token") or config.get("add_eos_token"):
        raise InputError(
            f"{folder}: add_bos_token or add_eos_token beside vocab.json: save the tokenizer as tokenizer.json first, "
            "with transformers' save_pretrained()"
        )
    text = read_bytes(merges).decode("utf-8", errors="replace")
    lines = [line.removesuffix("\r") for line in text.split("\n") if line and not line.startswith("#version")]
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "vocab": read_json(words), "merges": lines,
    }  # fmt: skip
    return {"version": "1.0", "added_tokens": [], "post_processor": None, "model": model}


def _pre_tokenizer(parsed: dict[str, Any], path: Path) -> str:
    decoder = parsed.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise wrong(f"{path}: decoder", "ByteLevel", brief(decoder))
    where, whole = f"{path}: pre_tokenizer", parsed.get("pre_tokenizer")
    steps = whole.get("pretokenizers") if isinstance(whole, dict) else None
    kinds = [s.get("type") if isinstance(s, dict) else None for s in steps] if isinstance(steps, list) else []
    if not isinstance(steps, list) or len(kinds) < 2 or {*kinds[:-1]} != {"Split"} or kinds[-1] != "ByteLevel":
        raise wrong(where, "Split, then ByteLevel", brief(whole))
    *splits, byte_level = steps
    if byte_level.get("add_prefix_space") is not False or byte_level.get("use_regex") is not False:
        raise wrong(where, "ByteLevel without prefix space and regex", brief(byte_level))
    for split in splits:
        if split.get("behavior") != "Isolated" or split.get("invert") is True:
            raise wrong(where, "Split with behavior Isolated, not inverted", brief(split))
    patterns = [split.get("pattern") for split in splits]
    regexes = tuple(p.get("Regex") if isinstance(p, dict) else None for p in patterns)
    if any(r is not None and type(r) is not str for r in regexes) or regexes not in PRE_TOKENIZERS:
        expected = f"the split regex of {', '.join(PRE_TOKENIZERS.values())}"
        raise wrong(where, expected, brief(regexes[0] if len(regexes) == 1 else regexes, 300))
    return PRE_TOKENIZERS[regexes]


def _normalizes(parsed: dict[str, Any], path: Path) -> bool:
    """Whether texts are brought into NFC; any other step is refused."""
    normalizer = parsed.get("normalizer")
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    found = steps if isinstance(steps, list) else [normalizer] if normalizer is not None else []
    if any(step != {"type": "NFC"} for step in found):
        raise wrong(f"{path}: normalizer", "NFC or none", brief(normalizer))
    return bool(found)


def claims(parsed: dict[str, Any]) -> bool:
    """All that does not fall back on bytes."""
    return parsed["model"].get("byte_fallback") in (False, None)


TOKENIZER = Kind(claims=claims, read=read, file="vocab.json", form=form)
