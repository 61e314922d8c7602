"""The tokenizer of a checkpoint, read from its files and refused where it cannot be reproduced.

Every kind is a file in `tokenizers/`; what they share is here. All bring a tokenizer into the form of tokenizer.json
first.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampan.errors import InputError, brief, wrong
from sampan.files import read_json, read_json_if_there, read_text, there
from sampan.registry import load_all

from . import added

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Pairs are merged in order of rank. `tokens` and `types` by id, `merges` in order of rank, each `left right`.

    `model`: llama.cpp's name for the kind, `pre` for the split. `special` maps roles such as eos to ids, `add` says
    whether bos or eos is put around a text. `whole`: there are tokens that no merge makes and that stand only for a
    piece that equals them. `nfc`: texts are composed first. `text_tokens`: ids that llama.cpp calls control tokens by
    their look, though their text is part of an answer. Of SentencePiece's kind: `scores` by id, and `prefix`, where a
    space is put in front (see `sampan.tokenizer.prefix` in runtime/engines/llama.py).
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
    model: str = "gpt2"
    scores: list[float] | None = None
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Whole:
    """All of a tokenizer in the form of tokenizer.json; `path` names it in errors, `vocab`: rows of the embedding."""

    folder: Path
    path: Path
    parsed: dict[str, Any]
    vocab: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of tokenizer.

    `claims`: whether a tokenizer in the form of tokenizer.json is of this kind; `read` makes a Tokenizer of it.
    `file`: what holds the words where there is no tokenizer.json; `form` brings it into that form, for an embedding of
    so many rows. `alone`: that file goes before tokenizer.json, and no tokens are added from other files.
    """

    claims: Callable[[dict[str, Any]], bool]
    read: Callable[[Whole], Tokenizer]
    file: str
    form: Callable[[Path, int], dict[str, Any]]
    alone: bool = False


def kinds() -> dict[str, Kind]:
    """Every kind by name."""
    found: dict[str, Kind] = load_all("sampan.convert.tokenizers", "TOKENIZER")
    return found


def read_tokenizer(folder: Path, vocab: int) -> Tokenizer:
    """The tokenizer of a checkpoint whose embedding has `vocab` rows."""
    kind, whole = _find(folder, vocab)
    return kind.read(whole)


def read_tokenizer_json(folder: Path, vocab: int) -> tuple[Path, dict[str, Any]]:
    """The whole tokenizer in the form of tokenizer.json, and the file that it was read from."""
    _, whole = _find(folder, vocab)
    return whole.path, whole.parsed


def _find(folder: Path, vocab: int) -> tuple[Kind, Whole]:
    known, path = kinds(), folder / "tokenizer.json"
    held = sorted((k for k in known.values() if there(folder / k.file)), key=lambda k: not k.alone)
    if held and (held[0].alone or not there(path)):
        kind, path = held[0], folder / held[0].file
        parsed = kind.form(folder, vocab)
        return kind, Whole(folder, path, parsed if kind.alone else added.complete(parsed, path, folder), vocab)
    if not there(path):
        files = " or ".join(k.file for k in known.values())
        raise InputError(
            f"{folder}: no tokenizer.json or {files}; load the tokenizer with transformers and save it with "
            "save_pretrained() first"
        )
    parsed = added.complete(read_json(path), path, folder)
    model = section(parsed, "model", path)
    if model.get("type") != "BPE":
        raise wrong(f"{path}: model.type", "BPE", brief(model.get("type")))
    return next(k for k in known.values() if k.claims(parsed)), Whole(folder, path, parsed, vocab)


def section(parsed: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """An object under a key."""
    value = parsed.get(key)
    if not isinstance(value, dict):
        raise wrong(f"{path}: {key}", "an object", brief(value))
    return value


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


def added_tokens(parsed: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    """Added tokens by id."""
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


def vocabulary(
    model: dict[str, Any], more: dict[int, dict[str, Any]], vocab: int, path: Path
) -> tuple[list[str], list[int]]:
    """Texts and types by id; `more`: added tokens."""
    learnt = section(model, "vocab", path)
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


def read_merges(model: dict[str, Any], path: Path) -> list[str]:
    """Merges in order of rank, `left right`."""
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


def special_tokens(
    w: Whole, tokens: list[str], *, by_name: bool = False, **unnamed: str
) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids, and whether bos and eos are put around a text; other tokens around one are refused.

    `by_name`: a name in tokenizer_config.json goes before an id in config.json. `unnamed`: texts of roles that no file
    names.
    """
    around = _around(w.parsed, w.path)
    special, add = _by_gguf(w.folder, tokens)
    special = {role: tokens.index(text) for role, text in unnamed.items() if text in tokens} | special
    special |= _named(w.folder, tokens) if by_name else {}
    for role, ids in around.items():
        if ids and ids != [special.get(role)]:
            expected = f"no tokens around a text but {role}"
            raise wrong(f"{w.path}: post_processor.single", expected, f"ids {brief(ids)}")
        if role in add or ids:  # beside tokenizer.json transformers does not look at add_bos_token
            add[role] = bool(ids)
    return special, add


def _by_gguf(folder: Path, tokens: list[str]) -> tuple[dict[str, int], dict[str, bool]]:
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
    for role, i in special.items():
        if i >= len(tokens):
            raise wrong(f"{folder}: {role} token", f"an id below vocab_size {len(tokens)}", i)
    return special, dict(read.add_special_token)


def _named(folder: Path, tokens: list[str]) -> dict[str, int]:
    """Roles by the names in tokenizer_config.json, also of tokens that tokenizer.json does not have."""
    config = added.read_config(folder)
    texts = {role: added.content(config.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    return {role: tokens.index(text) for role, text in texts.items() if text in tokens}
