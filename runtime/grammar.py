"""Hold an answer to a JSON schema or a grammar, through llguidance: which tokens may come next.

Its masks are exact: a token may come if the text so far and its bytes begin a text of the grammar. Forced tokens, which
llguidance would choose by itself, are switched off, so that the model writes words as it is used to.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, SchemaError, brief, wrong
from sampan.extras import advice

if TYPE_CHECKING:
    from .engine import Engine

Schema = Mapping[str, Any] | bool
LONGEST = 128 << 10  # bytes of a schema or a grammar
STACK = 256 << 20  # bytes that its compiler gets: it descends into rules, 16 KB for each that the longest one can nest
LIMITS = {  # the automaton's states, 2 KB each; symbols in all; and those that one step of the parser may hold
    "max_lexer_states": 50_000, "max_grammar_size": 30_000, "max_items_in_row": 8_000,
}  # fmt: skip
MULTIPLES = 100_000  # states of all multipleOf together: one for each remainder
BLAME_SECONDS = 1.0  # in which the part is looked for that is to blame
ROOT = ("$schema", "$defs", "definitions")  # what parts of a schema need beside them
LISTS, MAPS = ("allOf", "anyOf", "oneOf", "prefixItems"), ("properties", "patternProperties", "$defs", "definitions")
SINGLE = ("items", "additionalProperties")
HOW = {  # "x-guidance": white space between two words of JSON, and nothing that is known is ignored
    "whitespace_flexible": True, "whitespace_pattern": r" |\n {0,24}", "lenient": False, "coerce_one_of": False,
}  # fmt: skip
EXACT = '\n%llguidance {"no_forcing": true}\n'
NO_MARKS: Mapping[str, str] = {}
SPECIAL = b"\xff"  # by which llguidance knows what stands for no text; no text has this byte


def source(schema: Schema | None, grammar: str | None, *, lenient: bool = False) -> str | None:
    """What llguidance compiles, in Lark's form; None where an answer is free.

    `lenient` leaves out what of a schema cannot be held to. Raises InputError for what is no schema at all, and for
    more than can be compiled in bounded time.
    """
    if schema is None and grammar is None:
        return None
    if schema is not None and grammar is not None:
        raise SchemaError("an answer cannot be held to a schema and to a grammar; give one of them")
    if grammar is not None:
        if not isinstance(grammar, str):
            raise _refused("grammar", "a text in the form of llguidance, which is like Lark's", brief(grammar))
        return bounded("grammar", grammar) + EXACT
    if not isinstance(schema, Mapping | bool):
        raise _refused("schema", "an object, true or false", brief(schema))
    try:
        how = HOW | {"lenient": lenient}
        whole = dict(schema) | {"x-guidance": how} if isinstance(schema, Mapping) else schema
        text = bounded("schema", json.dumps(whole, allow_nan=False, separators=(",", ":")))
    except RecursionError:
        raise _refused("schema", "one that is not nested so deep", brief(schema)) from None
    except (TypeError, ValueError) as e:
        raise _refused("schema", "an object of JSON", brief(str(e))) from None
    if (states := _multiples(schema)) > MULTIPLES:
        raise _refused("schema: multipleOf", f"numbers of at most {MULTIPLES} in all", states, "make them smaller")
    return f"start: %json {text}{EXACT}"


def _refused(where: str, expected: str, found: object, hint: str = "") -> SchemaError:
    return SchemaError(str(wrong(where, expected, found, hint)))


def bounded(name: str, text: str) -> str:
    """The text, refused where it has more than `LONGEST` bytes."""
    if (size := len(text.encode(errors="replace"))) > LONGEST:
        raise _refused(name, f"at most {LONGEST} bytes", size)
    return text


def _multiples(schema: Schema) -> int:
    """All `multipleOf` together, each without its decimal point."""
    total, left = 0, [schema]
    while left:
        value = left.pop()
        left += value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        number = value.get("multipleOf") if isinstance(value, Mapping) else None
        if isinstance(number, int | float) and math.isfinite(number):
            digits = Decimal(str(number)).as_tuple().digits
            total += max(abs(int(number)), int("".join(map(str, digits))))
    return total


class Words:
    """A vocabulary as llguidance takes it, made of the engine's own pieces."""

    def __init__(self, engine: Engine) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError as e:
            raise InputError(f"llguidance: cannot be imported ({e}); {advice('llguidance')}") from None
        self.size = engine.vocab
        self.ends = np.array([t for t in range(self.size) if engine.is_end(t)], np.int64)
        if not len(self.ends):
            raise InputError("this artifact names no end token, so no answer can end where its schema does")
        pieces = [engine.piece(t) for t in range(self.size)]
        ends = set(self.ends.tolist())
        hidden = [t for t, p in enumerate(pieces) if not p or t in ends or p.startswith(SPECIAL)]
        self.texts = list(pieces)  # a marker may be a control token
        for t in hidden:
            self.texts[t] = engine.piece(t, control=True) or b"<unnamed %d>" % t
            pieces[t] = SPECIAL + self.texts[t].removeprefix(SPECIAL)
        self.controls = {self.texts[t].decode(errors="replace") for t in hidden}  # what a grammar names as one token
        self.tokenizer = LLTokenizer(_Pieces(pieces, int(self.ends[0])), n_vocab=self.size, eos_token=list(ends))
        self._beyond: dict[str, NDArray[np.intp]] = {}

    def named(self, texts: set[str]) -> NDArray[np.intp]:
        """The tokens that are one of some texts."""
        wanted = {t.encode() for t in texts}
        return np.array([i for i, t in enumerate(self.texts) if t in wanted], np.intp)

    def beyond(self, text: str, *, anywhere: bool) -> NDArray[np.intp]:
        """The tokens that begin with `text`, or have it anywhere, and go on behind it with more than line ends."""
        if (found := self._beyond.get(text)) is None:
            mark = text.encode()
            places = ((i, t.find(mark), t) for i, t in enumerate(self.texts))
            there = ((i, t[at + len(mark) :]) for i, at, t in places if (at >= 0 if anywhere else at == 0))
            wanted = (i for i, rest in there if rest.strip(b"\r\n"))
            found = self._beyond[text] = np.fromiter(wanted, np.intp)
        return found


class _Pieces:
    """What LLTokenizer asks of a tokenizer. It is never asked for the tokens of a text, since none are forced."""

    is_tokenizer_wrapper, bos_token_id, special_token_ids = True, None, ()

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens, self.eos_token_id = tokens, end

    def __call__(self, text: bytes) -> list[int]:
        return []


class Constraint:
    """Which tokens may come next in one answer.

    `marks` are those of reasoning, what opens it → what closes it; `opened` is the one that the prompt has opened.
    Reasoning is free but for its end; behind it, or at once where there is none, the text of the schema begins. A
    `document` is text alone: what looks like a marker of a call in it is none.
    """

    def __init__(
        self, words: Words, text: str, *, schema: Schema | None = None, marks: Mapping[str, str] = NO_MARKS,
        opened: str = "", document: bool = True,
    ) -> None:  # fmt: skip
        self._words, self._matcher = words, compiled(words, text, schema)
        self._marks, self.document = marks, document
        self._close = marks.get(opened, "")  # of the reasoning that we are in
        self.reasons = bool(opened)  # whether the answer begins with reasoning
        self._begun, self._tail = self.reasons, ""

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocabulary]. Raises SchemaError where none may."""
        if self._close:
            return self._free()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, count=self._words.size, bitorder="little").view(np.bool_)
        if self._matcher.is_error() or not found.any():
            raise SchemaError(f"no token of this model can go on as the schema wants it: {_reason(self._matcher)}")
        if not self._begun and self._marks:
            found[self._words.named(set(self._marks))] = True
        return found

    def _free(self) -> NDArray[np.bool_]:
        """All but ends, and those that would close the reasoning and go on."""
        found = np.ones(self._words.size, np.bool_)
        found[self._words.ends] = False
        found[self._words.beyond(self._close, anywhere=True)] = False
        for n in range(1, len(self._close)):
            if self._tail.endswith(self._close[:n]):
                found[self._words.beyond(self._close[n:], anywhere=False)] = False
        return found

    def take(self, token: int, text: bytes) -> None:
        """A token that was chosen, no end, and its bytes, with those of a marker."""
        if self._close:
            self._tail = (self._tail + text.decode("latin-1"))[-2 * len(self._close) - len(text) :]
            if self._close in self._tail:
                self._close = ""
            return
        opener = "" if self._begun else text.decode("latin-1")
        self._begun = True
        if opener in self._marks:
            self._close, self.reasons = self._marks[opener], True
        elif not self._matcher.consume_token(token):
            raise SchemaError(f"the answer left its schema: {_reason(self._matcher)}")


def compiled(words: Words, text: str, schema: Schema | None) -> Any:
    """A matcher at the start of a text. Raises SchemaError naming the part of the schema that is to blame."""
    matcher = _matcher(words, text)
    if not matcher.is_error():
        return matcher
    if schema is None:
        raise SchemaError(f"grammar: {_reason(matcher)}")
    place, reason = _blame(words, schema, _reason(matcher))
    raise SchemaError(f"schema: {brief(place)}: no answer can be held to this: {reason}")


def _matcher(words: Words, text: str) -> Any:
    """Compile in a thread of its own, whose stack is large enough for whatever `LONGEST` can nest."""
    from llguidance import LLMatcher, LLParserLimits

    found: list[Any] = []

    def work() -> None:
        limits = LLParserLimits(**LIMITS, verbose_errors=False)
        matcher = LLMatcher(words.tokenizer, text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what nothing fits shows here
        found.append(matcher)

    before = threading.stack_size(STACK)
    try:
        (thread := threading.Thread(target=work, name="sampan-grammar")).start()
    finally:
        threading.stack_size(before)
    thread.join()
    return found[0]


def _reason(matcher: Any) -> str:
    """Its error as one line, without the text that is quoted below it."""
    text = matcher.get_error().partition("\n   1 | ")[0].partition("\n<non-verbose/>")[0]
    if text.startswith("NoExtension"):
        return "no text fits it"
    return brief(" ".join(text.split("failed to compile JSON schema: ")[-1].split()) or "no text fits it", 300)


def _blame(words: Words, schema: Schema, reason: str) -> tuple[str, str]:
    """The JSON pointer of the innermost part that is refused by itself for the same reason."""
    place, part, until = "#", schema, time.monotonic() + BLAME_SECONDS
    beside = {k: schema[k] for k in ROOT if k in schema} if isinstance(schema, Mapping) else {}

    def same(child: Schema) -> bool:
        if time.monotonic() > until:
            return False
        text = source(beside | dict(child) if isinstance(child, Mapping) else child, None)
        matcher = _matcher(words, text or "")
        return bool(matcher.is_error()) and _reason(matcher) == reason

    while inner := _first(part, same):
        place, part = f"{place}/{inner[0]}", inner[1]
    return place, reason


def _first(part: Schema, wanted: Callable[[Schema], bool]) -> tuple[str, Schema] | None:
    return next(((name, child) for name, child in _parts(part) if wanted(child)), None)


def _parts(part: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas inside of one, by their place in it."""
    if not isinstance(part, Mapping):
        return
    for key in MAPS:
        if isinstance(part.get(key), Mapping):
            yield from ((f"{key}/{n.replace('~', '~0').replace('/', '~1')}", c) for n, c in part[key].items())
    for key in LISTS:
        if isinstance(part.get(key), list):
            yield from ((f"{key}/{n}", c) for n, c in enumerate(part[key]))
    yield from ((key, part[key]) for key in SINGLE if isinstance(part.get(key), Mapping))
