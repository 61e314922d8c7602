"""A call as <function=NAME> with <parameter=NAME> in it, between <tool_call> and </tool_call>: Qwen3-Coder, Qwen3.5.

A value stands on lines of its own. The text does not tell its type; the tool's schema does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sampan.errors import ToolError, brief

from ..calls import alternatives, json_rule, parameters
from ..grammar import ROOT
from ..reply import Form, Parser, ToolDelta, Tools

OPEN, CLOSE, VALUE_END = "<tool_call>", "</tool_call>", "</parameter>"
LIMITS = ("pattern", "format", "minLength", "maxLength")
FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
REFERENCE = re.compile(r"#/(\$defs|definitions)/([^/]+)")
BEGUN = re.compile(r"\s*<parameter=[^>\n]+>")
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

    @property
    def inside(self) -> bool:
        return self._open and bool(BEGUN.match(self._text))

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


def _properties(function: Any) -> dict[str, Any]:
    """Name → schema of the parameters; one that another place of the whole schema defines is that one."""
    whole = function.get("parameters") if isinstance(function, Mapping) else None
    properties = whole.get("properties") if isinstance(whole, Mapping) else None
    found = dict(properties) if isinstance(properties, Mapping) else {}
    for name, schema in found.items():
        where = REFERENCE.fullmatch(str(schema.get("$ref"))) if isinstance(schema, Mapping) else None
        named = whole.get(where[1]) if where and isinstance(whole, Mapping) else None
        if where and isinstance(named, Mapping) and where[2] in named:
            found[name] = named[where[2]]
    return found


def _typed(text: str, schema: Any) -> Any:
    """The value that a text means: itself where the schema allows a string or says nothing."""
    if _is_text(schema):
        return text
    if (word := text.strip()) in WORDS:
        return WORDS[word]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_text(schema: Any) -> bool:
    """Whether a value is written as it is, and not as JSON."""
    if not isinstance(schema, Mapping):
        return True
    options = [o for key in ("anyOf", "oneOf") for o in schema.get(key) or () if isinstance(o, Mapping)]
    said = [o.get("type") for o in (schema, *options)]
    types = {t for s in said for t in (s if isinstance(s, list) else [s]) if isinstance(t, str)}
    return not types or "string" in types


def write(functions: Sequence[Mapping[str, Any]], quote: Callable[[str], str]) -> Form:
    """Parameters in the order of the schema, those that are not required may be left out."""

    def rule(name: str, f: Mapping[str, Any]) -> list[str]:
        required, parts, rules = parameters(f).get("required") or (), [], []
        for n, (key, schema) in enumerate(_properties(f).items()):
            parts.append(f"{name}_{n}" + ("" if key in required else "?"))
            value, end = _value(f"{name}_{n}_value", f, key, schema)
            begin = quote(f"<parameter={_writable(f, key)}>\n")
            rules += [f"{name}_{n}: {begin} {name}_{n}_value {quote(end)}", value]
        head = quote(f"\n<function={_writable(f, f.get('name'))}>\n")
        return [f"{name}: {' '.join([head, *parts])} {quote('</function>' + chr(10))} {quote(CLOSE)}", *rules]

    return Form(OPEN, alternatives(functions, rule), f"\n{OPEN}")


def _value(rule: str, function: Mapping[str, Any], key: str, schema: Any) -> tuple[str, str]:
    """The rule for a value, and what stands behind it."""
    whole, strict = parameters(function), bool(function.get("strict"))
    if not _is_text(schema):
        beside = {k: whole[k] for k in ROOT if k in whole}
        return json_rule(rule, beside | dict(schema), strict=strict), f"\n{VALUE_END}\n"
    if words := _words(schema):
        return f"{rule}: {' | '.join(map(json.dumps, words))}", f"\n{VALUE_END}\n"
    if strict and isinstance(schema, Mapping) and (limits := [k for k in LIMITS if k in schema]):
        place = f"tools: {brief(function.get('name'))}: {brief(key)}: {limits[0]}"
        raise ToolError(f"{place} cannot be held to: this model writes texts without quotes; leave it out")
    return f"{rule}[suffix={json.dumps(VALUE_END)}]: /(?s:.*)/", "\n"


def _writable(function: Mapping[str, Any], name: Any) -> str:
    if not isinstance(name, str) or not name or name != name.strip() or re.search(r"[>\n]", name):
        raise ToolError(f"tools: {brief(function.get('name'))}: {brief(name)} is no name that this model can write")
    return name


def _words(schema: Any) -> list[str]:
    """The texts that an enumeration allows; none where it allows others."""
    values = schema.get("enum", [schema.get("const")]) if isinstance(schema, Mapping) else []
    return list(values) if isinstance(values, list) and all(isinstance(v, str) for v in values) else []


BARE = ("<function=",)  # such a model forgets the outer marker now and then
PARSER = Parser(
    claims=lambda template: "<tool_call>" in template and "<function=" in template,
    marks=dict.fromkeys((OPEN, *BARE), CLOSE),
    block=Calls,
    write=write,
)
