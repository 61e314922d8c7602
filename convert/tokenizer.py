"""The tokenizer of a checkpoint, read from tokenizer.json or tiktoken.model and refused where it cannot be reproduced.

The pre-tokenizer is recognised by its regular expression, not by hashing the ids of a test string, so
a fine-tune with added tokens is read like its base.
"""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampan.errors import InputError, brief, wrong
from sampan.files import read_json, read_json_if_there, read_text, there

from . import added, tiktoken

CASES = "minimax-m2"  # GPT-4o's split too; llama.cpp has another under this name, see formats/_llama.py
# llama.cpp's name for a pre-tokenizer (src/llama-vocab.cpp), by the split regex of tokenizer.json
PRE_TOKENIZERS = {
    added.QWEN2_SPLIT: "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    tiktoken.SPLIT: tiktoken.PRE,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": CASES,
}
COMPOSES = ("qwen2",)  # those whose text sampan.runtime brings into NFC unless the file says otherwise
WHOLE = ("llama-bpe",)  # for these llama.cpp takes a word that is a token before any merge, and does not normalise
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Byte-level BPE. `tokens` and `types` by id, `merges` in order of rank, each `left right`.

    `special` maps roles such as eos to ids, `add` says whether bos or eos is put around a text. `whole`: there are
    tokens that no merge makes and that stand only for a piece that equals them. `nfc`: texts are composed first.
    `text_tokens`: ids that llama.cpp calls control tokens by their look, though their text is part of an answer.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    add: dict[str, bool]
    whole: bool = False
    nfc: bool = False
    text_tokens: tuple[int, ...] = ()


def read_tokenizer(folder: Path, vocab: int) -> Tokenizer:
    """The tokenizer of a checkpoint whose embedding has `vocab` rows; tiktoken.model goes before tokenizer.json."""
    path, parsed = read_tokenizer_json(folder, vocab)
    model = _section(parsed, "model", path)
    if model.get("type") != "BPE":
        raise wrong(f"{path}: model.type", "BPE", brief(model.get("type")))
    pre, nfc = _pre_tokenizer(parsed, path), _normalizes(parsed, path)
    whole = pre == tiktoken.PRE and model.get("ignore_merges") is True
    if pre in WHOLE and (model.get("ignore_merges") is not True or nfc):
        found = f"{model.get('ignore_merges')} with normalizer {brief(parsed.get('normalizer'))}"
        raise wrong(f"{path}: model.ignore_merges", f"True without a normalizer, as llama.cpp's {pre} does", found)
    for key, harmless in (("byte_fallback", False), ("dropout", None), ("ignore_merges", whole or pre in WHOLE),
                          ("continuing_subword_prefix", ""), ("end_of_word_suffix", "")):  # fmt: skip
        if model.get(key) not in (harmless, None):
            hint = "tokenizers of SentencePiece's kind (Llama 2, Yi) are not read" if key == "byte_fallback" else ""
            raise wrong(f"{path}: model.{key}", repr(harmless), brief(model[key]), hint)
    more = _added(parsed, path)
    tokens, types = _vocabulary(model, more, vocab, path)
    around = _around(parsed, path)
    special, add = _special(folder, more, tokens)
    for role, ids in around.items():
        if ids and ids != [special.get(role)]:
            raise wrong(f"{path}: post_processor.single", f"no tokens around a text but {role}", f"ids {brief(ids)}")
        if role in add or ids:  # beside tokenizer.json transformers does not look at add_bos_token
            add[role] = bool(ids)
    if pre in WHOLE:
        add.setdefault("bos", False)  # without the key llama.cpp adds one
    text_tokens = tuple(i for i, e in more.items() if types[i] == CONTROL and not e.get("special"))
    return Tokenizer(pre, tokens, types, _merges(model, path), special, add, whole, nfc, text_tokens)


def read_tokenizer_json(folder: Path, vocab: int) -> tuple[Path, dict[str, Any]]:
    """The whole tokenizer in the form of tokenizer.json, and the file that it was read from."""
    if there(folder / tiktoken.NAME):
        return folder / tiktoken.NAME, tiktoken.tokenizer_json(folder, vocab)
    return added.tokenizer_json(folder)


def _section(parsed: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = parsed.get(key)
    if not isinstance(value, dict):
        raise wrong(f"{path}: {key}", "an object", brief(value))
    return value


def _pre_tokenizer(parsed: dict[str, Any], path: Path) -> str:
    decoder = parsed.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise wrong(f"{path}: decoder", "ByteLevel", brief(decoder))
    where, whole = f"{path}: pre_tokenizer", parsed.get("pre_tokenizer")
    steps = whole.get("pretokenizers") if isinstance(whole, dict) else None
    if not isinstance(steps, list) or [s.get("type") for s in steps if isinstance(s, dict)] != [
        "Split",
        "ByteLevel",
    ]:
        raise wrong(where, "Split, then ByteLevel", brief(whole))
    split, byte_level = steps
    if byte_level.get("add_prefix_space") is not False or byte_level.get("use_regex") is not False:
        raise wrong(where, "ByteLevel without prefix space and regex", brief(byte_level))
    if split.get("behavior") != "Isolated" or split.get("invert") is True:
        raise wrong(where, "Split with behavior Isolated, not inverted", brief(split))
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if regex not in PRE_TOKENIZERS:
        raise wrong(where, f"the split regex of {', '.join(PRE_TOKENIZERS.values())}", brief(regex, 300))
    return PRE_TOKENIZERS[regex]


def _normalizes(parsed: dict[str, Any], path: Path) -> bool:
    """Whether texts are brought into NFC; any other step is refused."""
    normalizer = parsed.get("normalizer")
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    found = steps if isinstance(steps, list) else [normalizer] if normalizer is not None else []
    if any(step != {"type": "NFC"} for step in found):
        raise wrong(f"{path}: normalizer", "NFC or none", brief(normalizer))
    return bool(found)


def _around(parsed: dict[str, Any], path: Path) -> dict[str, list[int]]:
    """Ids that the tokenizer puts around every text, by the role that they can have: "bos" before, "eos" after."""
    where, whole = f"{path}: post_processor", parsed.get("post_processor")
    around: dict[str, list[int]] = {"bos": [], "eos": []}
    steps = whole.get("processors", [whole]) if isinstance(whole, dict) else [] if whole is None else [whole]
    for step in steps if isinstance(steps, list) else [steps]:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            continue
        single, tokens = (step.get(k) for k in ("single", "special_tokens")) if isinstance(step, dict) else (None, None)
        if kind != "TemplateProcessing" or not isinstance(single, list) or not isinstance(tokens, dict):
            raise wrong(where, "ByteLevel, or TemplateProcessing of a single text", brief(step))
        texts = [n for n, s in enumerate(single) if isinstance(s, dict) and "Sequence" in s]
        if len(texts) != 1:
            raise wrong(f"{where}.single", "one text among special tokens", brief(single))
        for n, piece in enumerate(single):
            try:
                ids = [] if n == texts[0] else tokens[piece["SpecialToken"]["id"]]["ids"]
            except (KeyError, TypeError):
                ids = None
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise wrong(f"{where}.single", "special tokens with their ids", brief(piece))
            around["bos" if n < texts[0] else "eos"] += ids
    return around


def _added(parsed: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    entries = parsed.get("added_tokens") or []
    if not isinstance(entries, list):
        raise wrong(f"{path}: added_tokens", "a list", brief(entries))
    for entry in entries:
        valid = isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str)
        if not valid or not entry["content"] or entry["id"] in found:
            raise wrong(f"{path}: added_tokens", "an id of its own and a content", brief(entry))
        at = f"{path}: added token {brief(entry['content'])}"
        for key in ("lstrip", "rstrip", "single_word"):
            if entry.get(key):
                raise wrong(at, f"{key} false, as llama.cpp cannot do it", "true")
        if unicodedata.normalize("NFC", entry["content"]) != entry["content"]:
            raise wrong(at, "text in NFC", "other text")
        found[entry["id"]] = entry
    return found


def _vocabulary(
    model: dict[str, Any], more: dict[int, dict[str, Any]], vocab: int, path: Path
) -> tuple[list[str], list[int]]:
    learnt = _section(model, "vocab", path)
    tokens: list[str | None] = [None] * vocab
    types = [NORMAL] * vocab
    for token, i in learnt.items():
        if type(i) is not int or not 0 <= i < vocab:
            raise wrong(f"{path}: {brief(token)}", f"an id below vocab_size {vocab}", brief(i))
        if tokens[i] is not None:
            raise wrong(f"{path}: {brief(token)}", "an id of its own", f"{i}, as {brief(tokens[i])}")
        tokens[i] = token
    for i, entry in more.items():
        content = entry["content"]
        if not 0 <= i < vocab:
            raise wrong(f"{path}: added token {brief(content)}", f"an id below vocab_size {vocab}", i)
        if tokens[i] not in (None, content):
            raise wrong(f"{path}: added token {brief(content)}", "an id of its own", f"{i}, as {brief(tokens[i])}")
        tokens[i] = content
        types[i] = CONTROL if entry.get("special") or _looks_special(content) else USER_DEFINED
    for i, known in enumerate(tokens):
        if known is None:
            types[i] = UNUSED
    return [f"[PAD{i}]" if t is None else t for i, t in enumerate(tokens)], types


def _looks_special(token: str) -> bool:
    """As llama.cpp's converter: Qwen marks `<|fim_prefix|>` and its like as ordinary added tokens."""
    return (token.startswith("<|") and token.endswith("|>")) or (token.startswith("<｜") and token.endswith("｜>"))


def _merges(model: dict[str, Any], path: Path) -> list[str]:
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise wrong(f"{path}: model.merges", "a list of merges", brief(merges))
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]  # transformers writes either
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise wrong(f"{path}: model.merges", "two tokens for each merge", brief(pair))
    joined = [f"{left} {right}" for left, right in pairs]
    odd = next((m for m in joined if m.count(" ") != 1 or m[0] == " " or m[-1] == " "), None)
    if odd is not None:
        raise wrong(f"{path}: model.merges", "two byte-level tokens, which hold no space", brief(odd))
    return joined


def _special(
    folder: Path, more: dict[int, dict[str, Any]], tokens: list[str]
) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids and add flags, by the gguf package's reader, then checked."""
    from gguf import SpecialVocab

    logging.getLogger("gguf.vocab").disabled = True  # else it would write lines of its own on stderr
    for name in ("tokenizer_config.json", "chat_template.json"):
        read_json_if_there(folder / name)
    if there(folder / "chat_template.jinja"):
        read_text(folder / "chat_template.jinja")
    try:
        read = SpecialVocab(folder, load_merges=False)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise InputError(f"{folder / 'tokenizer_config.json'}: unreadable: {brief(str(e))}") from None
    special = _named(folder, tokens) | dict(read.special_token_ids)
    if there(folder / tiktoken.NAME):
        special |= _named_special(folder, more)
    for role, i in special.items():
        if i >= len(tokens):
            raise wrong(f"{folder}: {role} token", f"an id below vocab_size {len(tokens)}", i)
    return special, dict(read.add_special_token)


def _named(folder: Path, tokens: list[str]) -> dict[str, int]:
    """Roles by the names in tokenizer_config.json, also of tokens that tokenizer.json does not have."""
    config = added.read_config(folder)
    texts = {role: added.content(config.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    return {role: tokens.index(text) for role, text in texts.items() if text in tokens}


def _named_special(folder: Path, more: dict[int, dict[str, Any]]) -> dict[str, int]:
    """Roles by the names in tokenizer_config.json."""
    ids = {entry["content"]: i for i, entry in more.items()}
    config = read_json(folder / "tokenizer_config.json")
    named = {}
    for role in ("bos", "eos", "unk", "pad"):
        token = config.get(f"{role}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and content in ids:
            named[role] = ids[content]
    return named
