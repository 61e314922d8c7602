"""The header of a model card (README.md): a decoration of the output, which no kind of it may stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampan.errors import InputError, brief
from sampan.files import read_start, there

if TYPE_CHECKING:
    import yaml

CARD = "README.md"
LONGEST = 1 << 18  # bytes of a header; tables of benchmarks in real ones take about half of that
DEPTH = 20  # of lists and mappings
MOST = 1000  # entries of a list: each model and dataset becomes several keys of the output
MISSING = ("", "~", "null", "Null", "NULL")
# what the gguf package's Metadata reads: texts or lists of them; lists with mappings in them too; texts alone
LISTS = ("license", "tags", "pipeline_tag", "language", "languages")
MODELS = ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")
_TEXTS = (
    "name", "author", "version", "organization", "description", "finetune", "basename", "size_label", "url", "doi",
    "uuid", "repo_url",
)  # fmt: skip
TEXTS = (*_TEXTS, *(f"model_{n}" for n in _TEXTS), "model_creator", "model_type", "license_name", "license_link")


def read_card(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The header's texts and lists of texts, and a note where some of it cannot be used."""
    path = folder / CARD
    if not there(path):
        return {}, []
    try:
        parsed = _parse(_header(read_start(path, LONGEST)))
    except InputError as e:
        reason = str(e).removeprefix(f"{path}: ")
        return {}, [f"the model card is left out: {path}: {reason}"]
    card: dict[str, Any] = {}
    odd = []
    for key in (*LISTS, *MODELS, *TEXTS):
        value = parsed.get(key)
        found, whole = _text(value) if key in TEXTS else _several(value, mappings=key in MODELS)
        if found:
            card[key] = found
        if not whole:
            odd.append(key)
    return card, [f"of the model card, entries that are no texts are left out: {', '.join(odd)}"] if odd else []


def _header(raw: bytes) -> str:
    """The lines between the first two `---`; empty where the file does not begin with one."""
    lines = raw.removeprefix(b"\xef\xbb\xbf").splitlines()
    if not lines or lines[0].rstrip() != b"---":
        return ""
    end = next((n for n, line in enumerate(lines[1:], 1) if line.rstrip() == b"---"), None)
    if end is None:
        raise InputError(f"its header does not end within {LONGEST} bytes")
    text = b"\n".join(lines[1:end]).decode("utf-8", errors="replace")
    return text.replace("\t", "  ") + "\n"  # as the gguf package does: cards have tabs, YAML forbids them


def _parse(header: str) -> dict[str, Any]:
    """YAML by its events: every value is the text that stands there; no tag makes anything, no alias is followed."""
    import yaml

    events = yaml.parse(header, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        found = next((_value(e, events, 0) for e in events if isinstance(e, yaml.NodeEvent)), None)
    except yaml.YAMLError as e:
        raise InputError(brief(" ".join(str(e).split()))) from None
    if found is not None and not isinstance(found, dict):
        raise InputError(f"its header is a {type(found).__name__}, not keys and values")
    return found or {}


def _value(event: yaml.Event, rest: Iterator[yaml.Event], depth: int) -> Any:
    """A text, a list, a dict or None; `rest` goes on behind it. A key that is no text is dropped."""
    import yaml

    if isinstance(event, yaml.AliasEvent):
        raise InputError("an alias, which is not followed, since it can grow without bound")
    if isinstance(event, yaml.ScalarEvent):
        return None if event.style in (None, "") and event.value in MISSING else event.value
    if depth == DEPTH:
        raise InputError(f"its header is nested deeper than {DEPTH} levels")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(rest), yaml.SequenceEndEvent):
            items.append(_value(event, rest, depth + 1))
        return items
    pairs = {}
    while not isinstance(event := next(rest), yaml.MappingEndEvent):
        key, value = _value(event, rest, depth + 1), _value(next(rest), rest, depth + 1)
        if isinstance(key, str):
            pairs[key] = value
    return pairs


def _text(value: Any) -> tuple[str | None, bool]:
    """The text, None where there is none that UTF-8 can hold; whether that is all of it."""
    good = isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
    return (value, True) if good else (None, not value)


def _several(value: Any, *, mappings: bool) -> tuple[Any, bool]:
    """A text, or a list of texts and of `mappings` to texts; whether that is all of it."""
    if not isinstance(value, list | dict):
        return _text(value)
    items = value if isinstance(value, list) else [value]
    kept: list[Any] = []
    whole = len(items) <= MOST
    for item in items[:MOST]:
        if mappings and isinstance(item, dict):
            found: Any = {k: v for k, v in item.items() if _text(v)[0]}
        else:
            found, complete = _text(item)
            whole = whole and complete
        kept += [found] if found else []
    return kept, whole
