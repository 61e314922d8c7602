"""What a model writes in a conversation, as it comes: text, reasoning and calls of tools, told apart by markers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sampan import registry

from .markers import find_first, held

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """A part of a call. The first one of a call has its `id` and `name`; `arguments` of all, joined, are JSON as far
    as the model wrote JSON.
    """

    index: int = 0  # which call of the answer
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call; `arguments` is a text, which a model may have written wrongly: parse it with care."""

    id: str
    name: str
    arguments: str


class Block(Protocol):
    """Reads what stands between two markers. What it gives as text was no call, and is shown as it stands.

    `inside` is whether we are in the middle of a value.
    """

    @property
    def inside(self) -> bool: ...

    def feed(self, text: str) -> list[ToolDelta | str]:
        """What a further piece lets out; indices count from 0 in each block."""

    def close(self, *, whole: bool) -> list[ToolDelta | str]:
        """What is left; not `whole` where the answer was cut before the block's end."""


@dataclass(frozen=True, slots=True)
class Form:
    """How calls stand in an answer: behind `opens` one call, further ones behind `between`, then `closes`.

    `rules` are llguidance's Lark and define `call`.
    """

    opens: str
    rules: Sequence[str]
    between: str = ""
    closes: str = ""


Write = Callable[[Sequence[Mapping[str, Any]], Callable[[str], str]], Form]
"""Functions, and what writes a text or control token into a grammar → the form of their calls."""


@dataclass(frozen=True, slots=True)
class Parser:
    """One way to write. `marks`: what opens a block → what closes it; `inner`: further markers inside of it.

    `claims` tells by its chat template whether a model writes so. `block` is None where a block is reasoning. `write`
    is None where calls cannot be held to a form.
    """

    claims: Callable[[str], bool]
    marks: Mapping[str, str]
    block: Callable[[str, Tools], Block] | None = None  # by what opened it, and the tools
    inner: tuple[str, ...] = ()
    write: Write | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a piece of an answer let out."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolDelta, ...] = ()


def parsers(template: str, tools: Tools | None) -> list[Parser]:
    """Those that the template's model needs: without tools nothing is a call."""
    known = registry.load_all("sampan.runtime.parsers", "PARSER").values()
    return [p for p in known if (p.block is None or tools) and p.claims(template)]


class _Trimmed:
    """A stream of text without white space at its end, and, if `fresh`, without empty lines at its start."""

    def __init__(self) -> None:
        self.fresh = False
        self.space = ""

    def feed(self, text: str) -> str:
        text = self.space + text
        if self.fresh:
            text = text.lstrip("\r\n")
        out = text.rstrip()
        self.space = text[len(out) :]
        self.fresh = self.fresh and not out
        return out

    def begin(self) -> None:
        self.space, self.fresh = "", True


class Reply:
    """Feed it an answer in pieces. `prompt` is the text in front, which may have opened a block already."""

    def __init__(self, parsers: Sequence[Parser], tools: Tools | None, prompt: str) -> None:
        self._by_mark = {mark: p for p in parsers for mark in p.marks}
        self.markers = frozenset(
            m for p in parsers for m in (*p.marks, *p.marks.values(), *p.inner)
        )  # of control tokens, those that are read
        self.tools = tools or ()
        self.write = next((p.write for p in parsers if p.block), None)
        self._rest = ""
        self._open, self._close = "", ""  # the block that we are in
        self._block: Block | None = None  # None: text, or reasoning
        self._text, self._thought = _Trimmed(), _Trimmed()
        self._base = self.calls = 0  # calls in earlier blocks; in all
        self._document = self._held = False
        end = prompt.rstrip()
        self._closed = any(end.endswith(p.marks[m]) for m, p in self._by_mark.items())
        if mark := next((m for m in self._by_mark if end.endswith(m)), None):
            self._enter(mark)

    @property
    def opened(self) -> str:
        """The marker of the block that we are in."""
        return self._open

    @property
    def reasoning(self) -> dict[str, str]:
        """What opens reasoning → what closes it; none where the prompt has closed it already."""
        return {m: p.marks[m] for m, p in self._by_mark.items() if p.block is None and not self._closed}

    def document(self, *, reasoning: bool) -> None:
        """Of an answer that has begun: behind the `reasoning` that it begins with all is text, markers too."""
        self._document = True
        if not reasoning:
            self._by_mark = {}

    def hold(self) -> None:
        """Of an answer whose calls are held to their form: what closes one is a text in the middle of a value."""
        self._held = True

    def feed(self, text: str) -> Parts:
        """What a further piece of the answer lets out; what may become a marker is held back."""
        if not self._by_mark:
            return Parts(text)
        found: list[Parts] = []
        self._rest += text
        while True:
            marks = (self._close,) if self._open else tuple(self._by_mark)
            at, mark = find_first(self._rest, marks)
            if at < 0:
                cut = len(self._rest) - held(self._rest, marks)
                inside, self._rest = self._rest[:cut], self._rest[cut:]
                return joined([*found, self._inside(inside)])
            inside, self._rest = self._rest[:at], self._rest[at + len(mark) :]
            found.append(self._inside(inside))
            if self._held and self._block and self._block.inside:
                found.append(self._inside(mark))
            elif self._open:
                found.append(self._leave(mark, whole=True))
                if not self._by_mark:
                    text, self._rest = self._rest.lstrip("\r\n"), ""
                    return joined([*found, Parts(text)])
            else:
                self._enter(mark)

    def close(self, *, whole: bool) -> Parts:
        """What was held back. `whole`: the model itself ended here, which closes what it left open."""
        rest, self._rest = self._rest, ""
        found = [self._inside(rest)]
        if self._open:
            found.append(self._leave("", whole=whole))
        elif not self.calls:
            found.append(Parts(self._text.space))
        return joined(found)

    def _inside(self, text: str) -> Parts:
        if not self._open:
            return Parts(text=self._text.feed(text))
        if self._block is None:
            return Parts(reasoning=self._thought.feed(text))
        return self._told(self._block.feed(text)) if text else Parts()

    def _enter(self, mark: str) -> None:
        parser = self._by_mark[mark]
        self._open, self._close = mark, parser.marks[mark]
        self._block = parser.block(mark, self.tools) if parser.block else None
        self._thought.begin()
        self._base = self.calls

    def _leave(self, mark: str, *, whole: bool) -> Parts:
        told = self._told(self._block.close(whole=whole), mark) if self._block else Parts()
        self._open, self._block = "", None
        if self._document:
            self._by_mark = {}
        if not told.text:
            self._text.begin()
        return told

    def _told(self, parts: list[ToolDelta | str], mark: str = "") -> Parts:
        text, calls = "", []
        for part in parts:
            if isinstance(part, str):
                text += self._text.feed(self._open + part + mark)
                continue
            if part.name:
                self.calls += 1
                part = replace(part, id=part.id or f"call_{secrets.token_hex(12)}")
            calls.append(replace(part, index=self._base + part.index))
        return Parts(text=text, calls=tuple(calls))


def joined(parts: Sequence[Parts]) -> Parts:
    """Several as one."""
    return Parts(
        "".join(p.text for p in parts), "".join(p.reasoning for p in parts), tuple(c for p in parts for c in p.calls)
    )


def whole_calls(deltas: Sequence[ToolDelta]) -> tuple[ToolCall, ...]:
    """The calls that some parts make."""
    calls: dict[int, ToolCall] = {}
    for d in deltas:
        old = calls.get(d.index, ToolCall("", "", ""))
        calls[d.index] = ToolCall(old.id + d.id, old.name + d.name, old.arguments + d.arguments)
    return tuple(calls[i] for i in sorted(calls))
