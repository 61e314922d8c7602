"""BPE over characters that falls back on bytes: SentencePiece's tokenizer.model, or a tokenizer.json made of one.

SentencePiece joins the two neighbours whose joined text has the highest score, the left ones first; the tokenizers
package goes by the rank of a merge. Both are the same where every way to make a token is a merge, all ways of one
token stand together, and tokens come in the order of their scores; llama.cpp does as SentencePiece.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sampan.errors import InputError, brief, wrong
from sampan.files import read_json_if_there

from .. import added
from ..tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Kind,
    Tokenizer,
    Whole,
    added_tokens,
    read_merges,
    section,
    special_tokens,
    vocabulary,
)
from ._pieces import NAME, Pieces, read_pieces

SPACE = "▁"
BYTE_TEXT = re.compile("<0x[0-9A-F]{2}>")
UNMERGED, PADDING = -1000.0, -10000.0  # scores of added and of missing tokens, as llama.cpp's converter gives them
_ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_DOUBLED = {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}


def read(w: Whole) -> Tokenizer:
    """A Tokenizer of a tokenizer.json with byte fallback."""
    parsed, path = w.parsed, w.path
    model = section(parsed, "model", path)
    pieces = read_pieces(path, w.vocab) if path.name == NAME else None
    prefix = _prefix(parsed, path, made=pieces is not None)
    harmless = (("dropout", None), ("byte_fallback", True), ("fuse_unk", True), ("ignore_merges", pieces is not None),
                ("continuing_subword_prefix", ""), ("end_of_word_suffix", ""))  # fmt: skip
    for key, value in harmless:
        if model.get(key) not in ((value,) if key == "fuse_unk" else (value, None, False)):
            raise wrong(f"{path}: model.{key}", repr(value), brief(model.get(key)))
    more = added_tokens(parsed, path)
    tokens, types = vocabulary(model, more, w.vocab, path)
    merges = read_merges(model, path)
    missing = next((b for b in (f"<0x{n:02X}>" for n in range(256)) if b not in model["vocab"]), None)
    if missing is not None:
        raise wrong(f"{path}: model.vocab", "a token for each byte", f"none for {missing}")
    scores = _scores(merges, tokens, types) if pieces is None else pieces.scores + [PADDING] * len(tokens)
    listed = _listed(w.folder) if pieces is not None else more.keys()
    for i, text in enumerate(tokens):
        if pieces is not None and i < len(pieces.types) and i not in listed:
            types[i] = pieces.types[i]
        elif i in more:
            scores[i] = UNMERGED
        elif BYTE_TEXT.fullmatch(text):
            types[i] = BYTE
        if types[i] == USER_DEFINED:
            tokens[i] = text.replace(SPACE, " ")  # llama.cpp looks for it before it turns spaces
    _distinct(tokens, path)
    special, add = special_tokens(w, tokens, by_name=pieces is not None, bos="<s>", eos="</s>")
    add = {"bos": False, "eos": False} | add
    text_tokens = tuple(i for i, e in more.items() if types[i] == CONTROL and not e.get("special"))
    return Tokenizer(
        "default", tokens, types, merges, special, add, text_tokens=text_tokens, model="llama",
        scores=scores[: len(tokens)], prefix=prefix,
    )  # fmt: skip


def _prefix(parsed: dict[str, Any], path: Path, *, made: bool) -> str:
    """Where a space is put in front: see Tokenizer. Steps that llama.cpp's own do not stand for are refused."""
    decoder, normalizer, before = (parsed.get(k) for k in ("decoder", "normalizer", "pre_tokenizer"))
    kinds = [s.get("type") for s in _steps(decoder, "decoders")]
    if "ByteFallback" not in kinds or kinds[:1] != ["Replace"]:
        raise wrong(f"{path}: decoder", "Replace and ByteFallback", brief(decoder))
    steps, words = _steps(normalizer, "normalizers"), _steps(before, "pretokenizers")
    if made and words and words[-1].get("type") == "Split":  # see form
        words = words[:-1]
    space = (
        {k: v for k, v in words[0].items() if k != "type"} if [s.get("type") for s in words] == ["Metaspace"] else {}
    )
    scheme = space.get("prepend_scheme", "always")
    if space and (space.get("replacement") != SPACE or space.get("split") is not False):
        raise wrong(f"{path}: pre_tokenizer", f"Metaspace of {SPACE} that does not split", brief(before))
    if space and steps in ([], [_ESCAPE]) and scheme in ("always", "first", "never"):
        return {"always": "missing", "first": "first", "never": "never"}[str(scheme)]
    if space and steps == [_ESCAPE, _DOUBLED] and scheme == "always":
        return "always"
    if not words and steps in ([_PREPEND, _ESCAPE], [_ESCAPE]):
        return "always" if len(steps) == 2 else "never"
    raise wrong(f"{path}: normalizer and pre_tokenizer", f"steps that turn spaces into {SPACE} and no others",
                f"{brief(normalizer)} and {brief(before)}")  # fmt: skip


def _steps(step: Any, name: str) -> list[dict[str, Any]]:
    found = step.get(name, [step]) if isinstance(step, dict) else []
    return [s for s in found if isinstance(s, dict)] if isinstance(found, list) else [{}]


def _scores(merges: list[str], tokens: list[str], types: list[int]) -> list[float]:
    """By id, in the order in which tokens are first made: what no merge makes comes last."""
    ids, scores = {t: i for i, t in enumerate(tokens)}, [UNMERGED if k != UNUSED else PADDING for k in types]
    lowest = -float(len(merges)) - 1
    scores = [s if k == UNUSED else min(s, lowest) for s, k in zip(scores, types, strict=True)]
    for rank, merge in enumerate(merges):
        i = ids.get(merge.replace(" ", "", 1))
        if i is not None and scores[i] <= lowest:
            scores[i] = -float(rank)
    return scores


def _distinct(tokens: list[str], path: Path) -> None:
    """llama.cpp ends the process at two tokens of one text."""
    if len(set(tokens)) != len(tokens):
        seen = set[str]()
        twice = next(t for t in tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
        raise wrong(f"{path}: {brief(twice)}", "a text of its own", "two tokens of that text")


def _listed(folder: Path) -> set[int]:
    """Ids that other files than tokenizer.model give a token."""
    config = read_json_if_there(folder / "tokenizer_config.json").get("added_tokens_decoder")
    ids = {int(i) for i in config if i.isdecimal()} if isinstance(config, dict) else set[int]()
    return ids | {i for i in read_json_if_there(folder / "added_tokens.json").values() if type(i) is int}


def form(folder: Path, vocab: int) -> dict[str, Any]:
    """tokenizer.model as transformers (5.24) makes a tokenizer.json of it where a model has no class of its own.

    Pieces that a user defined are never merged; control pieces are added tokens, which transformers makes of those
    only that tokenizer_config.json names.
    """
    p, config = read_pieces(folder / NAME, vocab), added.read_config(folder)
    order = {t: (-s, i) for i, (t, s, k) in enumerate(zip(p.texts, p.scores, p.types, strict=True)) if k == NORMAL}
    merges = []
    for token, place in order.items():
        ways = ((token[:n], token[n:]) for n in range(1, len(token)))
        merges += [(place, left, right) for left, right in ways if left in order and right in order]
    steps: list[dict[str, Any]] = []
    own = [t for t, k in zip(p.texts, p.types, strict=True) if k == USER_DEFINED]
    scheme = ("always" if _legacy(folder, config) else "first") if p.prefix else "never"
    spaces = added.metaspace(scheme)
    if p.prefix:
        steps.append(spaces["pre_tokenizer"])
    if own:
        pattern = "|".join(re.escape(t) for t in sorted(own, key=len, reverse=True))
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": p.unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": bool(own),
        "vocab": {t: i for i, t in enumerate(p.texts)}, "merges": [[a, b] for _, a, b in sorted(merges)],
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags}
                         for i, (t, k) in enumerate(zip(p.texts, p.types, strict=True)) if k in (UNKNOWN, CONTROL)],
        "normalizer": {"type": "Sequence", "normalizers": [_ESCAPE, _DOUBLED] if scheme == "always" else [_ESCAPE]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None,
        "post_processor": _template(p, config, folder), "decoder": spaces["decoder"], "model": model,
    }  # fmt: skip


def _legacy(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a space goes in front of every text between special tokens, not only of the first."""
    return bool(config.get("legacy", added.own_class(config, folder) != added.LLAMA))


def _template(p: Pieces, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Tokens around a text, as the config asks for them."""
    name, around = config.get("tokenizer_class"), {}
    known = name is None or str(name).removesuffix("Fast") in ("LlamaTokenizer", "PreTrainedTokenizer")
    for role, text in (("bos", p.bos), ("eos", p.eos)):
        asked = config.get(f"add_{role}_token", False if known else None)
        where = f"{folder / 'tokenizer_config.json'}: add_{role}_token"
        if type(asked) is not bool:
            raise wrong(where, f"true or false, since the default of {brief(name)} is not known", brief(asked))
        text = added.content(config.get(f"{role}_token")) or text
        if asked and text not in p.texts:
            raise InputError(f"{where}: true, but the {role} token {text!r} is no piece of {NAME}")
        around[role] = text if asked else ""
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    bos, eos = ([{"SpecialToken": {"id": t, "type_id": 0}}] if t else [] for t in around.values())
    used = {t: {"id": t, "ids": [p.texts.index(t)], "tokens": [t]} for t in around.values() if t}
    pair = [*bos, sequence, *eos, *bos, {"Sequence": {"id": "B", "type_id": 1}}, *eos]
    return {"type": "TemplateProcessing", "single": [*bos, sequence, *eos], "pair": pair, "special_tokens": used}


def claims(parsed: dict[str, Any]) -> bool:
    """What falls back on bytes."""
    return parsed["model"].get("byte_fallback") not in (False, None)


TOKENIZER = Kind(claims=claims, read=read, file=NAME, form=form)
