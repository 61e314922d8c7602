"""Calls in a section of control tokens: Kimi K2 and its successors.

<|tool_call_begin|>functions.NAME:N<|tool_call_argument_begin|>JSON<|tool_call_end|>, in a section for all of them. The
first part is the call's id too, by which the template names its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..calls import alternatives, json_rule, parameters
from ..markers import find_first, held
from ..reply import Form, Parser, ToolDelta, Tools

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
BEGIN, ARGUMENTS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
NEXT = {END: BEGIN, BEGIN: ARGUMENTS, ARGUMENTS: END}  # the marker that we are behind → the one that comes


class Calls:
    """Calls of a section; arguments go on as they come."""

    def __init__(self, opened: str, tools: Tools) -> None:
        self._text, self._behind, self._index = "", END, -1

    @property
    def inside(self) -> bool:
        return False  # its markers are control tokens

    def feed(self, text: str) -> list[ToolDelta | str]:
        self._text += text
        found: list[ToolDelta | str] = []
        while True:
            mark = NEXT[self._behind]
            at, _ = find_first(self._text, (mark,))
            if self._behind == ARGUMENTS:
                cut = at if at >= 0 else len(self._text) - held(self._text, (mark,))
                if cut:
                    found.append(ToolDelta(self._index, arguments=self._text[:cut]))
                self._text, at = self._text[cut:], min(at, 0)
            if at < 0:
                return found
            if self._behind == BEGIN:
                named = self._text[:at].strip()
                self._index += 1
                name = named.removeprefix("functions.").rpartition(":")[0] or named
                found.append(ToolDelta(self._index, named, name))
            self._text, self._behind = self._text[at + len(mark) :], mark

    def close(self, *, whole: bool) -> list[ToolDelta | str]:
        return [self._text] if whole and self._index < 0 else []


def write(functions: Sequence[Mapping[str, Any]], quote: Callable[[str], str]) -> Form:
    """As the template writes calls of earlier turns; their numbers may go on from there."""

    def rule(name: str, f: Mapping[str, Any]) -> list[str]:
        named = quote(f"functions.{f.get('name')}:")
        head = f"{quote(BEGIN)} {named} /[0-9]{{1,4}}/ {quote(ARGUMENTS)}"
        arguments = json_rule(f"{name}_arguments", parameters(f), strict=bool(f.get("strict")))
        return [f"{name}: {head} {name}_arguments {quote(END)}", arguments]

    return Form(SECTION, alternatives(functions, rule), closes=SECTION_END)


PARSER = Parser(
    claims=lambda template: SECTION in template,
    marks={SECTION: SECTION_END},
    block=Calls,
    inner=(BEGIN, ARGUMENTS, END),
    write=write,
)
