"""A call as JSON between <tool_call> and </tool_call>: Hermes, Qwen2.5, Qwen3, QwQ.

{"name": "f", "arguments": {…}}, as the templates of these models ask for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..calls import alternatives, json_rule, parameters
from ..reply import Form, Parser, ToolDelta, Tools

OPEN, CLOSE = "<tool_call>", "</tool_call>"
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class Call:
    """One call. Its arguments go on as they come when the name stands in front of them, else all at the end."""

    def __init__(self, opened: str, tools: Tools) -> None:
        self._text = ""
        self._depth, self._quoted, self._escaped = 0, False, False
        self._begun = self._ended = False

    @property
    def inside(self) -> bool:
        return self._quoted

    def feed(self, text: str) -> list[ToolDelta | str]:
        if self._begun:
            return self._arguments(text)
        self._text += text
        head = HEAD.match(self._text)
        name = _loaded(head[1]) if head else None
        if head is None or not isinstance(name, str):
            return []
        self._begun = True
        return [ToolDelta(name=name), *self._arguments(self._text[head.end() :])]

    def _arguments(self, text: str) -> list[ToolDelta | str]:
        """Up to the brace that closes them; what follows belongs to the object around."""
        end = 0
        for end, c in enumerate(text, 1):
            if self._ended:
                end -= 1
                break
            if self._quoted:
                self._quoted = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
            elif c == '"':
                self._quoted = True
            else:
                self._depth += (c in "{[") - (c in "}]")
                self._ended = self._depth == 0
        return [ToolDelta(arguments=text[:end])] if end else []

    def close(self, *, whole: bool) -> list[ToolDelta | str]:
        if self._begun or not whole:
            return []
        call = _loaded(self._text)
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(name, str) or not name:
            return [self._text]
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return [ToolDelta(name=name, arguments=arguments)]


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def claims(template: str) -> bool:
    """Others write <tool_call> too, with something else between."""
    return "<tool_call>" in template and "arguments" in template and not re.search("<function=|<arg_key>", template)


def write(functions: Sequence[Mapping[str, Any]], quote: Callable[[str], str]) -> Form:
    """As the templates of these models write calls of earlier turns."""

    def rule(name: str, f: Mapping[str, Any]) -> list[str]:
        head = f'\n{{"name": {json.dumps(f.get("name"), ensure_ascii=False)}, "arguments": '
        arguments = json_rule(f"{name}_arguments", parameters(f), strict=bool(f.get("strict")))
        return [f"{name}: {quote(head)} {name}_arguments {quote('}' + chr(10))} {quote(CLOSE)}", arguments]

    return Form(OPEN, alternatives(functions, rule), f"\n{OPEN}")


PARSER = Parser(claims=claims, marks={OPEN: CLOSE}, block=Call, write=write)
