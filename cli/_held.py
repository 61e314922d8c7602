"""What an answer is held to: a schema or a grammar, given on the command line or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def held(schema: str | None, grammar: Path | None) -> dict[str, Any]:
    """Fields of `Options`, read and looked at before a model is opened. A schema is JSON, or the name of a file."""
    from sampan.files import parse_json, read_bytes, read_text
    from sampan.runtime.grammar import LONGEST, source

    found: dict[str, Any] = {}
    if schema is not None:
        inline = schema.lstrip().startswith("{") or schema in ("true", "false")
        raw = schema.encode(errors="replace") if inline else read_bytes(Path(schema), LONGEST)
        found["schema"] = parse_json(raw, "--schema" if inline else schema)
    if grammar is not None:
        found["grammar"] = read_text(grammar, LONGEST)
    source(**({"schema": None, "grammar": None} | found))
    return found
