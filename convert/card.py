"""The header of a model card (README.md): a decoration of the output, which no kind of it may stop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sampan.errors import InputError, brief
from sampan.files import read_start, there

LONGEST = 1 << 16  # bytes of a header
MISSING = ("", "~", "null", "Null", "NULL")
LISTS = ("tags", "pipeline_tag", "language", "languages", "base_model", "base_models", "datasets", "dataset")


def read_card(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The header's texts and lists of texts, and a note where some of it cannot be used."""
    path = folder / "README.md"
    if not there(path):
        return {}, []
    try:
        text = read_start(path, LONGEST).decode("utf-8", errors="replace").replace("\r\n", "\n")
    except InputError as e:
        return {}, [f"the model card is left out: {e}"]
    if not text.startswith("---\n"):
        return {}, []
    header, end, _ = text[4:].partition("\n---")
    if not end and not text[4:].startswith("---"):
        return {}, [f"the model card is left out: {path}: its header does not end within {LONGEST} bytes"]
    try:
        parsed = _parse(header.replace("\t", "  ") if end else "")
    except ValueError as e:
        return {}, [f"the model card is left out: {path}: {brief(str(e))}"]
    if not isinstance(parsed, dict):
        return {}, [f"the model card is left out: {path}: its header is {type(parsed).__name__}, not keys and values"]
    card = {str(k): found for k, v in parsed.items() if (found := _texts(v, str(k) in LISTS)) is not None}
    odd = sorted(str(k) for k, v in parsed.items() if str(k) in LISTS and card.get(str(k)) != v and v not in MISSING)
    return card, [f"of the model card, entries that are no texts are left out: {', '.join(odd)}"] if odd else []


def _texts(value: Any, several: bool) -> str | list[str] | None:
    if isinstance(value, list) and several:
        return [v for v in value if isinstance(v, str) and v not in MISSING] or None
    return value if isinstance(value, str) and value not in MISSING else None


def _parse(header: str) -> Any:
    """YAML with every value as the text that stands there, and no alias, which can grow without bound."""
    import yaml

    if re.search(r"(^|[\s\[{,:])[*&][\w-]", header):
        raise ValueError("an alias or anchor, which is not followed")
    try:
        return yaml.load(header, Loader=yaml.BaseLoader)  # noqa: S506 - it makes texts, lists and dicts only
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise ValueError(" ".join(str(e).split())) from None
