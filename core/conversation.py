"""Conversations as files: a JSON list of messages, as templates and OpenAI's API have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .artifact import write_atomically
from .errors import InputError, brief, wrong
from .files import parse_json, read_bytes, there

ROLES = ("system", "user", "assistant")
KEYS = ("role", "content", "reasoning_content")


def read_conversation(path: Path) -> list[dict[str, str]]:
    """The messages of a file. Raises InputError for anything but texts of known roles, a system message first."""
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, list) or not value:
        raise wrong(path, "a JSON list of messages", brief(value))
    for n, message in enumerate(value):
        where = f"{path}: message {n + 1}"
        if not isinstance(message, dict):
            raise wrong(where, "an object", brief(message))
        if message.get("role") not in ROLES:
            raise wrong(f"{where}: role", f"one of {', '.join(ROLES)}", brief(message.get("role")))
        if message["role"] == "system" and n:
            raise wrong(where, "a system message in the first place only", "one here")
        for key, text in message.items():
            if key not in KEYS:
                raise wrong(where, f"the keys {', '.join(KEYS)}", brief(key))
            if not isinstance(text, str):
                raise wrong(f"{where}: {key}", "a text", brief(text))
        if "content" not in message:
            raise wrong(where, "a content", "none")
    return value


def write_conversation(path: Path, messages: Sequence[dict[str, Any]]) -> None:
    """Save messages, complete or not at all; a file that is no conversation is not replaced."""
    if there(path):
        try:
            read_conversation(path)
        except InputError:
            raise InputError(f"{path}: this is there already and is no conversation; choose another name") from None
    if not path.absolute().parent.is_dir():
        raise wrong(path, "a name in a folder that exists", "no such folder")
    write_atomically(path, (json.dumps(messages, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
