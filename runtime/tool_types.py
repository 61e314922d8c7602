"""Tools as TypeScript, which Kimi K2.5 was trained on: its own code hands this to the template as `tools_ts_str`.

The form is that of tool_declaration_ts.py beside the model: a namespace with a function type for each tool, comments
for descriptions, limits and defaults, required parameters before optional ones, an interface for each definition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STEP = "  "
NAMES = {
    "string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null", "object": "{}",
    "array": "Array<any>",
}  # fmt: skip
NUMBERS = ("maximum", "minimum")
LIMITS = {  # of a value, by the type that has them
    "string": ("maxLength", "minLength", "pattern"), "number": NUMBERS, "integer": NUMBERS,
    "array": ("maxItems", "minItems"),
}  # fmt: skip
PYTHON: dict[str, Any] = {"string": str, "number": (int, float), "integer": int, "boolean": bool}


def ordered(value: Any) -> Any:
    """JSON with the keys of every object in order."""
    if isinstance(value, Mapping):
        return {k: ordered(value[k]) for k in sorted(value)}
    return [ordered(v) for v in value] if isinstance(value, (list, tuple)) else value


def typescript(tools: Sequence[Mapping[str, Any]]) -> str:
    """The declarations of the tools that are functions, or nothing. ValueError for a schema that has no such form."""
    functions = [t["function"] for t in tools if t.get("type") == "function" and t.get("function")]
    if not functions:
        return ""
    return "# Tools\n\n## functions\nnamespace functions {\n" + "\n".join(map(_function, functions)) + "\n}\n"


@dataclass(slots=True)
class _Names:
    """The definitions met so far, and whether a schema names the whole of which it is a part."""

    known: dict[str, Any] = field(default_factory=dict)
    whole: bool = False


def _function(function: Mapping[str, Any]) -> str:
    names, parameters = _Names(), function.get("parameters") or {}
    of, interfaces = _object(parameters, "", names), []
    if names.whole:
        inner = ",\n".join(text for _, _, text in _fields(parameters, STEP, names))
        interfaces.append("interface parameters {" + (f"\n{inner}\n" if inner else "") + "}")
        of = "parameters"
    for name, schema in dict(names.known).items():
        about = _comment(schema.get("description"), "")
        interfaces.append(f"{about}interface {name} {_type(schema, '', names)}")
    about = _comment(function.get("description"), "")
    return "\n".join([*interfaces, f"{about}type {function.get('name', 'function')} = (_: {of}) => any;"])


def _object(schema: Mapping[str, Any], indent: str, names: _Names) -> str:
    names.known |= schema.get("$defs") or {}
    others = schema.get("additionalProperties")
    if isinstance(others, dict):
        others = _type(others, indent + STEP, names)
    elif others is not None:
        others = {True: "any", False: "never"}[others]
    fields = [text for _, _, text in sorted(_fields(schema, indent + STEP, names))]
    if others is not None:
        fields.append(f"{indent}{STEP}[k: string]: {others}")
    return "{\n" + ",\n".join(fields) + f"\n{indent}}}" if fields else "{}"


def _fields(schema: Mapping[str, Any], indent: str, names: _Names) -> list[tuple[bool, str, str]]:
    """(optional, name, text) of an object's properties, as they stand."""
    required, found = schema.get("required", []), []
    for name, value in schema.get("properties", {}).items():
        about, default = _about(value, indent), value.get("default") if isinstance(value, dict) else None
        if default is not None:
            plain = isinstance(default, (int, float))
            about += f"{indent}// Default: {repr(default) if plain else json.dumps(default, ensure_ascii=False)}\n"
        optional = name not in required
        text = f"{about}{indent}{name}{'?' if optional else ''}: {_type(value, indent, names)}"
        found.append((optional, name, text))
    return found


def _type(schema: Any, indent: str, names: _Names) -> str:
    if isinstance(schema, bool) or schema == {}:
        return "null" if schema is False else "any"
    kind = schema.get("type")
    if "$ref" in schema:
        return _reference(schema["$ref"], names)
    if "anyOf" in schema:
        return " | ".join(_type(s, indent, names) for s in schema["anyOf"])
    if "enum" in schema:
        return _enum(schema["enum"], kind)
    if isinstance(kind, list):
        return " | ".join(NAMES[k] for k in kind)
    if kind == "object":
        return _object(schema, indent, names)
    if kind == "array":
        item = schema.get("items") or {}
        if about := _about(item, indent + STEP):
            return f"Array<\n{about}{indent}{STEP}{_type(item, indent + STEP, names)}\n{indent}>"
        return f"Array<{_type(item, indent, names)}>"
    if not isinstance(kind, str):
        raise ValueError(f"no type: {schema}")
    return "number" if kind == "integer" else kind


def _reference(to: str, names: _Names) -> str:
    if to == "#":
        names.whole = True
        return "parameters"
    name = to.rpartition("/")[2]
    if not to.startswith("#/$defs/") or not isinstance(names.known.get(name), dict):
        raise ValueError(f"no definition: {to}")
    return name


def _enum(values: Sequence[Any], kind: Any) -> str:
    if isinstance(kind, list):
        if len(kind) > 2 or (len(kind) == 2 and "null" not in kind):
            raise ValueError(f"an enumeration of several types: {kind}")
        kind = next((k for k in kind if k != "null"), kind[0])
    if not all(v is None or isinstance(v, PYTHON.get(kind, object)) for v in values):
        raise ValueError(f"an enumeration of other values than {kind}: {values}")
    return " | ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in values)


def _about(schema: Any, indent: str) -> str:
    """Comment lines: the description, and the limits of a plain value."""
    if not isinstance(schema, dict):
        return ""
    named = {"$ref", "anyOf", "enum"} & schema.keys() or not isinstance(schema.get("type"), str)
    limits = [f"{k}: {schema[k]}" for k in (() if named else LIMITS.get(schema["type"], ())) if k in schema]
    return _comment(schema.get("description"), indent) + (f"{indent}// {', '.join(limits)}\n" if limits else "")


def _comment(text: str | None, indent: str) -> str:
    return "".join(f"{indent}// {line}\n" if line else "\n" for line in text.split("\n")) if text else ""
