"""Hold an answer to calls of tools: that there must be one, of which tool, and with arguments that fit its schema.

How a model writes a call is its parser's affair, which gives the grammar of one; this joins them, and leaves the text
in front of them free where none must come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sampan.errors import InputError, SchemaError, ToolError, brief

from .grammar import EXACT, Constraint, Words, bounded, source

if TYPE_CHECKING:
    from .reply import Reply, Tools
    from .stream import Options


def function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a tool says of its function, in OpenAI's form or bare."""
    found = tool.get("function", tool)
    return found if isinstance(found, Mapping) else {}


def plain(tools: Tools | None) -> Tools | None:
    """The tools as templates show them: `strict` is for us."""

    def shown(part: Mapping[str, Any]) -> dict[str, Any]:
        inner = {"function": shown(part["function"])} if isinstance(part.get("function"), Mapping) else {}
        return {k: v for k, v in part.items() if k != "strict"} | inner

    return tools and [shown(t) if isinstance(t, Mapping) else t for t in tools]


def held(options: Options, reply: Reply) -> bool:
    """Whether an answer is held to anything. Raises InputError for what has no meaning."""
    document = source(options.schema, options.grammar) is not None
    if options.must_call and not reply.tools:
        raise InputError("must_call: there are no tools that could be called; give tools, or leave it out")
    if document and reply.tools:
        raise InputError("an answer that is held to a schema calls no tools; leave the schema out, or the tools")
    names = [function(t).get("name") for t in reply.tools]
    if isinstance(options.must_call, str) and options.must_call not in names:
        raise InputError(f"must_call: no tool has the name {brief(options.must_call)}; there are {brief(names)}")
    asked = options.must_call or not options.parallel_calls or any(function(t).get("strict") for t in reply.tools)
    return document or bool(asked and reply.tools)


def constraint(words: Words, options: Options, reply: Reply) -> Constraint:
    """What holds an answer to its schema or its calls. Raises ToolError naming the function that is to blame."""
    marks, opened = reply.reasoning, reply.opened
    if (text := source(options.schema, options.grammar)) is not None:
        return Constraint(words, text, schema=options.schema, marks=marks, opened=opened)
    functions = [function(t) for t in reply.tools]
    if isinstance(options.must_call, str):
        functions = [f for f in functions if f.get("name") == options.must_call]
    text = grammar(words, functions, reply, must=bool(options.must_call), many=options.parallel_calls)
    try:
        return Constraint(words, text, marks=marks, opened=opened, document=False)
    except SchemaError as e:
        _blame(words, functions)
        raise ToolError(f"tools: {e}") from None


def _blame(words: Words, functions: Sequence[Mapping[str, Any]]) -> None:
    """Raise ToolError for the first function whose schema is refused by itself."""
    for f in functions:
        schema = parameters(f)
        try:
            Constraint(words, source(schema, None, lenient=not f.get("strict")) or "", schema=schema)
        except SchemaError as e:
            raise ToolError(f"tools: {brief(f.get('name'))}: {e}") from None


def grammar(words: Words, functions: Sequence[Mapping[str, Any]], reply: Reply, *, must: bool, many: bool) -> str:
    """In llguidance's form of Lark: calls behind the marker that opens them, and where none must come, or any text."""
    write = reply.write
    if write is None:
        raise ToolError("tools: it is not known how to hold the calls of this model to a form; leave strict, "
                        "a forced tool and parallel calls as they are")  # fmt: skip

    def quote(text: str) -> str:
        return text if text in words.controls else json.dumps(text, ensure_ascii=False)

    form = write(functions, quote)
    mark = quote(form.opens)
    more = f" ({quote(form.between)} call)*" if many and form.between else " call*" if many else ""
    rules = [f"rest: call{more}" + (f" {quote(form.closes)}" if form.closes else ""), *form.rules]
    if must:
        rules = [f"start: GAP? {mark} rest", r"GAP: /\n{1,2}/", *rules]
    elif form.opens in words.controls:
        rules = [f"start: TEXT? ({mark} rest)?", "TEXT: /(?s:.*)/", *rules]
    else:
        rules = ["start: TEXT | lead rest", f"TEXT: /(?s:.*)/ & ~/(?s:.*{form.opens}.*)/",
                 f"lead[suffix={mark}]: /(?s:.*)/", *rules]  # fmt: skip
    return bounded("tools", "\n".join(rules)) + EXACT


def parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object in any case."""
    found = function.get("parameters")
    return {"type": "object"} | (dict(found) if isinstance(found, Mapping) else {})


def json_rule(name: str, schema: Mapping[str, Any], *, strict: bool) -> str:
    """A rule for a JSON value. What cannot be held to is left out where nobody asked for `strict`."""
    text = source(schema, None, lenient=not strict) or ""
    return f"{name}: {text.removeprefix('start: ').removesuffix(EXACT)}"


def alternatives(
    functions: Sequence[Mapping[str, Any]], rule: Callable[[str, Mapping[str, Any]], list[str]]
) -> list[str]:
    """Rules for `call`: one of the functions."""
    names = [f"call_{i}" for i in range(len(functions))]
    return [f"call: {' | '.join(names)}", *(r for n, f in zip(names, functions, strict=True) for r in rule(n, f))]
