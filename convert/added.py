"""What stands beside tokenizer.json and belongs to the tokenizer, as transformers (5.24) puts it together.

Its tokenizer class may bring a normalizer and a split of its own, and tokens are added from added_tokens_decoder,
added_tokens.json, the named special tokens and the further ones. The tokenizers package decides their ids: a text that
has an id keeps it, a new one gets the next, whatever id a file says.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sampan.errors import InputError, brief, wrong
from sampan.files import read_json_if_there

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5_SPLIT = (  # marks belong to their letters
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AS_IS, LLAMA = "TokenizersBackend", "LlamaTokenizer"
SPLITS = {"Qwen2Tokenizer": QWEN2_SPLIT, "Qwen3_5Tokenizer": QWEN3_5_SPLIT}  # these do not take tokenizer.json as it is
REGISTERED = {  # model type → its class; that class is taken where the files name none, and by FIXED whatever they name
    **dict.fromkeys(
        ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe"), "Qwen2Tokenizer"
    ),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("mistral", "glm4", "glm4_moe", "glm4_moe_lite", "kimi_k25", "kimi_linear", "minimax_m2"), AS_IS),
}
FIXED = ("qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text")
OTHERS = frozenset(  # these make a tokenizer of their own kind of the words alone
    f"{name}Tokenizer"
    for name in (
        "Albert", "Barthez", "Bert", "BigBird", "Blenderbot", "Camembert", "CLIP", "CodeLlama", "CodeGen", "Cohere",
        "Deberta", "DebertaV2", "Esmc", "Funnel", "Gemma", "GPT2", "GPTNeoX", "Herbert", "Lasr", "LayoutLMv2",
        "LayoutLMv3", "LayoutXLM", "Luke", "MarkupLM", "MBart", "MBart50", "MLuke", "MPNet", "Nllb", "Nougat",
        "OpenAIGPT", "Pegasus", "Reformer", "RemBert", "Roberta", "SeamlessM4T", "Siglip2", "Splinter", "T5", "Tipsv2",
        "Udop", "VideoPrism", "Whisper", "XGLM", "XLMRoberta", "XLNet",
    )
)  # fmt: skip
OWN_TOKENS = {  # of the classes, where a config does not say otherwise
    **dict.fromkeys(SPLITS, dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")),
    LLAMA: {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def complete(parsed: dict[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    """A tokenizer with its class's own steps, and with the tokens that other files add."""
    config = read_config(folder)
    if config.get("split_special_tokens"):
        where = f"{folder / 'tokenizer_config.json'}: split_special_tokens"
        raise wrong(where, "false, since no engine here splits them", "true", "delete the key if a training left it")
    listed = config.get("fast_tokenizer_files")
    if isinstance(listed, list) and any(name != "tokenizer.json" for name in listed):
        where = f"{folder / 'tokenizer_config.json'}: fast_tokenizer_files"
        hint = "keep the file for today's transformers as tokenizer.json, and delete the key"
        raise wrong(where, "tokenizer.json alone", brief(listed), hint)
    kind = own_class(config, folder)
    if kind == LLAMA and "ByteLevel" in str([parsed.get("pre_tokenizer"), parsed.get("decoder")]):
        kind = AS_IS
    if kind in SPLITS:
        parsed = _as_qwen(parsed, SPLITS[kind], config)
    elif kind == LLAMA and path.name == "tokenizer.json":
        parsed = _as_llama(parsed, config)
    parsed = parsed | {"truncation": None, "padding": None}  # transformers sets both anew with every call
    return _with_added(parsed, path, config, folder, kind)


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with what older files beside it say of named tokens (special_tokens_map.json)."""
    config = dict(read_json_if_there(folder / "tokenizer_config.json"))
    if not config.get("extra_special_tokens") and "additional_special_tokens" in config:
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    if "added_tokens_decoder" not in config:
        older = dict(read_json_if_there(folder / "special_tokens_map.json"))
        told, more = config.get("extra_special_tokens") or [], older.get("extra_special_tokens")
        if isinstance(told, list) and isinstance(more, list):
            older["extra_special_tokens"] = [*told, *(t for t in more if t not in told)]
        elif isinstance(told, dict) and isinstance(more, list):
            older["additional_special_tokens"] = older.pop("extra_special_tokens")
        config |= older
    if config.get("extra_special_tokens") is None and "additional_special_tokens" in config:
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    return config


def own_class(config: dict[str, Any], folder: Path) -> str:
    """The tokenizer class that transformers takes (`AutoTokenizer.from_pretrained`); AS_IS where tokenizer.json holds.

    `config`: see read_config. Raises InputError for a class that makes something else of the words.
    """
    model, remote = read_json_if_there(folder / "config.json"), config.get("auto_map")
    kind, text = str(model.get("model_type")), config.get("tokenizer_class") or model.get("tokenizer_class")
    own, named = REGISTERED.get(kind), text.removesuffix("Fast") if isinstance(text, str) else ""
    if config.get("tokenizer_class") == "":
        return AS_IS
    known = not (remote.get("AutoTokenizer") if isinstance(remote, dict) else remote)  # else the name counts
    if not isinstance(text, str) or (known and (kind in FIXED or own == AS_IS)):
        return own or AS_IS
    if named in OTHERS:
        where = f"{folder / 'tokenizer_config.json'}: tokenizer_class"
        hint = "name PreTrainedTokenizerFast if tokenizer.json is right as it stands"
        raise wrong(where, f"a class that takes tokenizer.json as it is, {', '.join(SPLITS)} or {LLAMA}", named, hint)
    return named if named in SPLITS or named == LLAMA else AS_IS


def own_split(config: dict[str, Any], folder: Path) -> str | None:
    """The split of the class that transformers takes, where that brings one. `config`: see read_config."""
    return SPLITS.get(own_class(config, folder))


def content(token: object) -> str | None:
    """The text of a token that a config gives as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _as_qwen(parsed: dict[str, Any], regex: str, config: dict[str, Any]) -> dict[str, Any]:
    """The class's own steps and plain BPE, whatever the file says; unchanged where that is the same."""
    spaced = bool(config.get("add_prefix_space"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": spaced, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    steps: dict[str, Any] = {}
    if parsed.get("normalizer") != {"type": "NFC"}:
        steps["normalizer"] = {"type": "NFC"}
    before = parsed.get("pre_tokenizer")
    found = before.get("pretokenizers") if isinstance(before, dict) else None
    if found not in ([split, byte_level], [split, byte_level | {"trim_offsets": False}]):
        steps["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    if not isinstance(parsed.get("decoder"), dict):
        steps["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    model = parsed.get("model")
    if isinstance(model, dict) and model.get("ignore_merges"):
        steps["model"] = model | {"ignore_merges": False}
    return parsed | steps


def _as_llama(parsed: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """LlamaTokenizer's own steps, for words of SentencePiece's kind."""
    if not isinstance(parsed.get("model"), dict):
        return parsed  # refused where it is read
    prefix = config.get("add_prefix_space") in (True, None)
    return (
        parsed
        | metaspace("never" if not prefix else "always" if config.get("legacy") else "first")
        | {"model": parsed["model"] | {"dropout": None, "fuse_unk": True, "unk_token": None, "ignore_merges": False}}
    )


def metaspace(scheme: str) -> dict[str, Any]:
    """Steps that turn spaces into U+2581, and put one in front of a text that begins with none."""
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if scheme != "never" else []
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }


def _with_added(parsed: dict[str, Any], path: Path, config: dict[str, Any], folder: Path, kind: str) -> dict[str, Any]:
    """`parsed` with the tokens that other files add; unchanged where they add none and no text has two ids."""
    own, model = parsed.get("added_tokens") or [], parsed.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    sound = isinstance(own, list) and isinstance(vocab, dict)
    if not sound or any(not isinstance(e, dict) or type(e.get("id")) is not int or content(e) is None for e in own):
        return parsed  # refused where it is read
    if "added_tokens_decoder" in config and kind in SPLITS:  # then it looks nowhere else
        listed = {content(t) for t in config["added_tokens_decoder"].values()} if _sound(config) else set()
        own = [e for e in own if e["content"] in listed]
        parsed = parsed | {"added_tokens": own} if own != parsed.get("added_tokens") else parsed
    known = {e["content"]: e for e in own}
    more = [t for t in _tokens(config, folder, kind, known) if _differs(known.get(t["content"]), t)]
    twice = len(known) != len(own) or any((vocab or {}).get(c, e["id"]) != e["id"] for c, e in known.items())
    if not more and not twice:
        return parsed
    return parsed | {"added_tokens": _settled(parsed, path, more)}


def _differs(old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    """Whether a token is new or another one; what is only named in a config (no flags) must be special, no more."""
    flags = [f for f in FLAGS if f in new]
    return old is None or any(bool(old.get(f)) != new[f] for f in flags)


def _settled(parsed: dict[str, Any], path: Path, more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every added token with its id, by the tokenizers package."""
    from tokenizers import AddedToken, Tokenizer

    own = [{"id": e["id"], **_flags(e, bool(e.get("special")))} for e in parsed.get("added_tokens") or []]
    try:
        reader = Tokenizer.from_str(json.dumps(parsed | {"added_tokens": own}))
    except Exception as e:  # the package raises plain Exception
        raise InputError(f"{path}: the tokenizers package cannot read it: {brief(str(e))}") from None
    reader.add_tokens([AddedToken(t["content"], **{f: t[f] for f in FLAGS if f in t}) for t in more])
    return [
        {"id": i, "content": t.content, **{f: getattr(t, f) for f in FLAGS}}
        for i, t in sorted(reader.get_added_tokens_decoder().items())
    ]


def _tokens(config: dict[str, Any], folder: Path, kind: str, known: Collection[str]) -> list[dict[str, Any]]:
    """What transformers adds, in its order: by id those with one, then the named ones, then the further ones.

    `known`: texts of tokens that are there already, of which a name changes nothing but that they are special.
    """
    roles = OWN_TOKENS.get(kind, {}) | {k: config[k] for k in NAMED if k in config}
    more = {k: v for k, v in config.items() if k not in NAMED and k.endswith("_token") and _names_one(v)}
    named = {k: roles[k] for k in NAMED if content(roles.get(k)) is not None} | more
    extra = config.get("extra_special_tokens") or []
    if isinstance(extra, dict):
        named |= extra
        extra = config.get("additional_special_tokens") or []
    if not isinstance(extra, list) or any(content(t) is None for t in [*extra, *named.values()]):
        raise InputError(
            f"{folder / 'tokenizer_config.json'}: extra_special_tokens: {brief(extra)} is no list of texts"
        )
    special = {content(t) for t in [*named.values(), *extra]}
    bare: list[dict[str, Any]] = [{"content": content(t), "special": True} for t in [*named.values(), *extra]]
    if kind != "Qwen2Tokenizer":  # which adds the texts alone
        flags = [t if isinstance(t, dict) and t["content"] not in known else {} for t in [*named.values(), *extra]]
        bare = [{f: bool(t[f]) for f in FLAGS if f in t} | b for t, b in zip(flags, bare, strict=True)]
    found: dict[str, dict[str, Any]] = {}
    for token in [*_with_ids(config, folder, special), *bare]:
        old = found.setdefault(token["content"], token)
        if token["content"] in {content(t) for t in named.values()}:
            old["special"] = True
    return list(found.values())


def _names_one(value: object) -> bool:
    """Whether a key of a model's own names a token: a text, or what save_pretrained makes of a token."""
    return content(value) is not None and (isinstance(value, str) or (isinstance(value, dict) and "__type" in value))


def _with_ids(config: dict[str, Any], folder: Path, special: set[str | None]) -> list[dict[str, Any]]:
    path, decoder = folder / "tokenizer_config.json", config.get("added_tokens_decoder")
    if decoder is None:
        path, found = folder / "added_tokens.json", read_json_if_there(folder / "added_tokens.json")
        if not all(type(i) is int for i in found.values()):
            raise InputError(f"{path}: every token needs a whole number as its id")
        made = {i: _flags(t, t in special) | {"normalized": t not in special} for t, i in found.items()}
        return [made[i] for i in sorted(made)]
    if not _sound(config):
        raise InputError(f"{path}: added_tokens_decoder: an object of ids and tokens with their content is needed")
    return [_flags(decoder[k], bool(decoder[k].get("special"))) for k in sorted(decoder, key=int)]


def _sound(config: dict[str, Any]) -> bool:
    """Whether added_tokens_decoder is an object of ids and tokens."""
    decoder = config["added_tokens_decoder"]
    valid = isinstance(decoder, dict) and all(k.isascii() and k.isdigit() and len(k) < 10 for k in decoder)
    return valid and all(isinstance(t, dict) and content(t) is not None for t in decoder.values())


def _flags(token: Any, special: bool) -> dict[str, Any]:
    """A token with every flag; those that are not given are false, and `normalized` is what `special` is not."""
    given = token if isinstance(token, dict) else {}
    flags = {f: bool(given.get(f, False)) for f in FLAGS}
    return {
        "content": content(token),
        **flags,
        "special": special,
        "normalized": bool(given.get("normalized", not special)),
    }
