"""A call as <function=NAME> with <parameter=NAME> in it, between <tool_call> and </tool_call>: Qwen3-Coder, Qwen3.5.

A value stands on lines of its own. The text does not tell its type; the tool's schema does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..reply import Parser, ToolDelta, Tools

FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
END = re.compile(r"\s*</function>")
WORDS = {"True": True, "False": False, "None": None}  # as templates in Python write them


class Calls:
    """Calls of a block. A parameter goes on when it is complete."""

    def __init__(self, opened: str, tools: Tools) -> None:
        self._bare = opened if opened in BARE else ""  # the marker is part of the call
        self._text = self._bare
        self._schemas = {f.get("name"): _properties(f) for t in tools for f in [t.get("function", t)]}
        self._schema: Mapping[str, Any] = {}
        self._index, self._open, self._empty = -1, False, True

    def feed(self, text: str) -> list[ToolDelta | str]:
        self._text += text
        found: list[ToolDelta | str] = []
        while True:
            if not self._open and (m := FUNCTION.match(self._text)):
                name = m[1].strip()
                self._index, self._open, self._empty = self._index + 1, True, True
                self._schema = self._schemas.get(name, {})
                found.append(ToolDelta(self._index, name=name, arguments="{"))
            elif self._open and (m := PARAMETER.match(self._text)):
                name = m[1].strip()
                value = json.dumps(_typed(m[2], self._schema.get(name)), ensure_ascii=False)
                comma = "" if self._empty else ", "
                self._empty = False
                found.append(
                    ToolDelta(self._index, arguments=f"{comma}{json.dumps(name, ensure_ascii=False)}: {value}")
                )
            elif self._open and (m := END.match(self._text)):
                self._open = False
                found.append(ToolDelta(self._index, arguments="}"))
            else:
                return found
            self._text = self._text[m.end() :]

    def close(self, *, whole: bool) -> list[ToolDelta | str]:
        if not whole:
            return []
        if self._open:
            return [ToolDelta(self._index, arguments="}")]
        return [self._text.removeprefix(self._bare)] if self._index < 0 else []


def _properties(function: Any) -> Mapping[str, Any]:
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _typed(text: str, schema: Any) -> Any:
    """The value that a text means: itself where the schema allows a string or says nothing."""
    if not isinstance(schema, Mapping):
        return text
    options = [o for key in ("anyOf", "oneOf") for o in schema.get(key) or () if isinstance(o, Mapping)]
    said = [o.get("type") for o in (schema, *options)]
    types = {t for s in said for t in (s if isinstance(s, list) else [s]) if isinstance(t, str)}
    if not types or "string" in types:
        return text
    if (word := text.strip()) in WORDS:
        return WORDS[word]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


BARE = ("<function=",)  # such a model forgets the outer marker now and then
PARSER = Parser(
    claims=lambda template: "<tool_call>" in template and "<function=" in template,
    marks=dict.fromkeys(("<tool_call>", *BARE), "</tool_call>"),
    block=Calls,
)
