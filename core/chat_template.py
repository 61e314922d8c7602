"""The chat templates of a folder and the special tokens that they can ask for, as transformers reads both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InputError, brief, wrong
from .files import LIMITS, parse_json, read_json_if_there, read_text, there

CONFIG = "tokenizer_config.json"
FILE = "chat_template.jinja"
MORE = "additional_chat_templates"  # a folder of NAME.jinja
MOST = 100
PROCESSOR = "chat_template.json"  # of older checkpoints with images
SPECIAL_TOKENS = "special_tokens_map.json"
DEFAULT, TOOLS = "default", "tool_use"
KEY = "tokenizer.chat_template"  # of a GGUF file; a named template has `.NAME` behind it
SPECIAL_KEY = "sampan.tokenizer.special_tokens"  # of a GGUF file: what `special_tokens` finds, as JSON


def read_templates(folder: Path) -> dict[str, str]:
    """Name → template; without names there is one, "default". Files go before keys of a config."""
    found = {DEFAULT: read_text(folder / FILE)} if there(folder / FILE) else {}
    if (folder / MORE).is_dir():
        names = checked_names(folder, sorted(p.name for p in (folder / MORE).glob("*.jinja")))
        found |= {n.removesuffix(".jinja"): read_text(folder / MORE / n, LIMITS[FILE]) for n in names}
    for name in (CONFIG, PROCESSOR):
        if not found:
            found = _named(read_json_if_there(folder / name).get("chat_template"), folder / name)
    return found


def checked_names(where: object, names: list[str]) -> list[str]:
    """The same names, if there are not too many templates to be true."""
    if len(names) > MOST:
        raise InputError(
            f"{where}: {MORE} holds {len(names)} templates, more than the {MOST} that are read; remove some"
        )
    return names


def _named(value: Any, where: Path) -> dict[str, str]:
    """A template, or named ones as a list or as an object."""
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(t, dict) for t in value):
        value = {t.get("name"): t.get("template") for t in value}
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(x, str) for pair in value.items() for x in pair):
        raise InputError(f"{where}: chat_template: neither a text nor named texts: {brief(value)}; mend or remove it")
    return value


def choose(templates: dict[str, str], *, tools: bool, name: Any = None) -> str:
    """The template of a name, else that for a conversation with or without tools. Raises InputError without one."""
    if not templates:
        raise InputError("tokenizer.chat_template: the artifact has no chat template; use a plain prompt (--raw)")
    if name is not None:
        if not isinstance(name, str) or name not in templates:
            raise wrong("chat_template", f"one of {brief(', '.join(sorted(templates)))}", brief(name))
        return templates[name]
    if tools and TOOLS in templates:
        return templates[TOOLS]
    if DEFAULT not in templates:
        raise InputError(
            f"tokenizer.chat_template: the artifact's templates ({brief(', '.join(sorted(templates)))}) are for other "
            "conversations; use a plain prompt (--raw)"
        )
    return templates[DEFAULT]


def named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates among the keys of a GGUF file, as `read_templates`."""
    keys = {KEY: DEFAULT} | {k: k.removeprefix(f"{KEY}.") for k in metadata if k.startswith(f"{KEY}.")}
    return {name: t for k, name in keys.items() if isinstance(t := metadata.get(k), str)}


def named_tokens(metadata: Mapping[str, Any], without: dict[str, str]) -> dict[str, str]:
    """The special tokens among the keys of a GGUF file; `without` the key of our converter, those."""
    if SPECIAL_KEY not in metadata:
        return without
    found = parse_json(str(metadata[SPECIAL_KEY]).encode(), SPECIAL_KEY)
    if not isinstance(found, dict):
        raise wrong(SPECIAL_KEY, "names of tokens with their texts", brief(found))
    return found


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and all other names of tokens that have a text, also a model's own, such as image_token."""
    config = read_json_if_there(folder / CONFIG)
    named = dict(config)
    if "added_tokens_decoder" not in config:
        named |= read_json_if_there(folder / SPECIAL_TOKENS)
    extra = named.get("extra_special_tokens")
    found = {}
    for name, token in (named | (extra if isinstance(extra, dict) else {})).items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
