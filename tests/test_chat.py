"""Conversations against transformers' renderer, by a template like each family's, and templates that mean harm."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sampan.errors import InputError
from sampan.runtime import chat
from sampan.runtime.chat import render
from sampan.runtime.tool_types import ordered, typescript

TEMPLATES = {p.stem: p.read_text() for p in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
ASK: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {
        "name": "查天气", "description": "Weather of\na <city>", "return": {"type": "string"},
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "its & name"},
            "days": {"type": ["integer", "null"], "enum": [1, 2]},
            "where": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "number"}}},
            "any": {}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip


def call(number: int, arguments: Any) -> dict[str, Any]:
    return {"id": f"call-{number:04}", "type": "function", "function": {"name": "查天气", "arguments": arguments}}


def answer(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call-{number:04}", "name": "查天气", "content": f"{number}°"}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "你好 <|im_end|> é"}],
    "a system text": [
        {"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "\nHello. "}, {"role": "user", "content": "  bye "},
    ],
    "an end": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    "a call": [
        {"role": "system", "content": "S"}, {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call(1, {"city": "北京", "days": 2, "w": [1, None]})]},
        answer(1), {"role": "assistant", "content": "3°"}, {"role": "user", "content": "ok"},
    ],
    "a call without content": [
        *ASK, {"role": "assistant", "tool_calls": [call(1, {"city": "a"})]}, {"role": "tool", "content": "1"},
    ],
    "arguments as text": [*ASK, {"role": "assistant", "content": "", "tool_calls": [call(1, '{"c": 1}')]}, answer(1)],
    "parallel calls": [
        *ASK, {"role": "assistant", "content": None, "tool_calls": [call(1, {"city": "a"}), call(2, {"city": "b"})]},
        answer(1), answer(2), {"role": "assistant", "content": "both"},
    ],
    "thoughts": [
        *ASK, {"role": "assistant", "reasoning_content": "hm\nhm", "content": "y"}, {"role": "user", "content": "z"},
        {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}, {"role": "user", "content": "w"},
        {"role": "assistant", "reasoning": "so", "content": "v", "tool_calls": None},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]},
    ],
    "two questions": [*ASK, *ASK],
    "a result of nothing": [*ASK, answer(1)],
}  # fmt: skip
VARIABLES: list[dict[str, Any]] = [
    {"bos_token": "<s>", "eos_token": "</s>"},
    {"eos_token": "</s>", "enable_thinking": False, "thinking": False, "builtin_tools": ["python", "search"]},
    {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": True, "preserve_thinking": True, "my_name": "N",
     "documents": [{"title": "a title", "text": "a text of many words"}], "pad_token": "<pad>", "date_string": "1 May"},
]  # fmt: skip


TYPES = """# Tools

## functions
namespace functions {
// Weather of
// a <city>
type 查天气 = (_: {
  // its & name
  city: string,
  any?: any,
  days?: 1 | 2,
  where?: Array<{
    [k: string]: number
  }>
}) => any;
type now = (_: {}) => any;
}
"""


def theirs(template: str, messages: list[dict[str, Any]], tools: Any, prompt: bool, variables: dict[str, Any]) -> Any:
    """transformers' own text, or None where it refuses."""
    from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

    conversation = _normalize_chat_messages(messages)
    if tools and "tools_ts_str" in template:  # what Kimi's own code adds
        tools, variables = json.loads(json.dumps(tools, sort_keys=True)), variables | {"tools_ts_str": TYPES}
    try:
        rendered, _ = render_jinja_template(
            [conversation], tools, chat_template=template, add_generation_prompt=prompt, **variables
        )
    except Exception:
        return None
    return rendered[0]


def ours(template: str, messages: list[dict[str, Any]], tools: Any, prompt: bool, variables: dict[str, Any]) -> Any:
    try:
        return render(template, messages, tools, variables, add_generation_prompt=prompt)
    except InputError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_family_renders_as_in_transformers(name: str) -> None:
    texts, refused = set(), 0
    for title, messages in CONVERSATIONS.items():
        for tools in (None, TOOLS, []):
            for n, variables in enumerate(VARIABLES):
                for prompt in (True, False):
                    expected = theirs(TEMPLATES[name], messages, tools, prompt, variables)
                    assert ours(TEMPLATES[name], messages, tools, prompt, variables) == expected, (title, tools, n)
                    texts.add(expected)
                    refused += expected is None
    assert len(texts) > 30, "the conversations make little difference"


def test_llama_refuses_parallel_calls_and_mistral_two_questions() -> None:
    variables = VARIABLES[0]
    with pytest.raises(InputError, match=r"^chat template: One call at a time, please!$"):
        render(TEMPLATES["llama3"], CONVERSATIONS["parallel calls"], TOOLS, variables)
    with pytest.raises(InputError, match=r"^chat template: Please take turns: user, assistant, user$"):
        render(TEMPLATES["mistral"], CONVERSATIONS["two questions"], None, variables)


def test_types_of_tools() -> None:
    """As Kimi's tool_declaration_ts.py writes them: written down once by hand from its output."""
    tree = {
        "type": "object", "required": ["leaf"],
        "$defs": {"Leaf": {"type": "object", "description": "an end", "properties": {
            "size": {"type": "integer", "minimum": 0, "maximum": 9}}}},
        "properties": {
            "left": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/Leaf", "description": "one"},
            "how": {"enum": ["a", None, 1.5, True]}, "anything": True, "nothing": False,
            "what": {"anyOf": [{"type": "string", "maxLength": 3}, {
                "type": "array", "minItems": 1, "items": {"type": "string", "pattern": "x+", "description": "p"}}]},
            "deep": {"type": "object", "additionalProperties": False, "required": ["b"], "properties": {
                "b": {"type": "boolean", "default": False}, "a": {"type": "string", "default": "é"}}},
        },
    }  # fmt: skip
    walk = {"name": "walk", "description": "Of a tree.\n\nAll of it.", "parameters": tree}
    tools = [{"type": "function", "function": walk}, {"type": "_plugin", "function": {"name": "no"}}]
    assert (
        typescript(ordered([*tools, {"type": "function", "function": {"name": "bare"}}]))
        == """# Tools

## functions
namespace functions {
interface parameters {
  anything?: any,
  deep?: {
    // Default: False
    b: boolean,
    // Default: "é"
    a?: string,
    [k: string]: never
  },
  how?: "a" | None | 1.5 | True,
  // one
  leaf: Leaf,
  left?: parameters,
  nothing?: null,
  what?: string | Array<
    // p
    // pattern: x+
    string
  >
}
// an end
interface Leaf {
  // maximum: 9, minimum: 0
  size?: number
}
// Of a tree.

// All of it.
type walk = (_: parameters) => any;
type bare = (_: {}) => any;
}
"""
    )


@pytest.mark.parametrize(
    "schema", [{"description": "x"}, {"$ref": "#/$defs/No"}, {"type": ["x"]}, {"enum": [1], "type": "string"}]
)
def test_a_schema_without_types_is_given_as_json(schema: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}]
    text = render("{{ tools_ts_str if tools_ts_str else tools | tojson }}", ASK, tools)
    assert text == json.dumps(tools, sort_keys=True)


def test_reasoning_goes_by_all_its_names() -> None:
    template = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}|{{ messages[0].reasoning }}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        messages = [{"role": "assistant", name: "hm"}]
        expected = theirs(template, messages, None, False, {})
        assert render(template, messages) == expected
        assert expected.startswith("hm|hm|")


def test_values_of_every_kind_and_names_that_are_missing() -> None:
    template = (
        "{{ messages[0] }}|{{ nothing }}|{{ nothing is defined }}|{{ tools }}|{{ documents }}|{{ a | tojson }}|"
        "{{ a.x }}|{{ dict.fromkeys('ab', 1) }}|{{ namespace(b=2).b }}|{{ strftime_now('%Y') | length }}"
    )
    messages = [{"role": "user", "content": 'é\ud800 "', "n": 1.5, "t": True, "z": None, "l": [None]}]
    variables = {"a": {"x": float("inf"), "y": [1, {"z": "<&>"}]}}
    assert render(template, messages, None, variables) == theirs(template, messages, None, True, variables)


@pytest.mark.parametrize(
    ("messages", "tools", "variables", "message"),
    [
        ([], None, {}, "a conversation needs at least one message, and there is none"),
        (["x"], None, {}, "a message must be an object with keys and values, not x"),
        (ASK, ["x"], {}, "a tool must be an object with keys and values, not x"),
        (ASK, None, {"messages": 1}, "messages cannot be a variable, since it is part of the conversation"),
        (ASK, None, {"x": {1, 2}}, "the conversation cannot be written as JSON: set is no JSON value"),
        ([{"content": b"x"}], None, {}, "the conversation cannot be written as JSON: bytes is no JSON value"),
    ],
)
def test_what_is_no_conversation(messages: Any, tools: Any, variables: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as e:
        render("x", messages, tools, variables)
    assert str(e.value) == f"chat template: {message}"


PLAIN = "; a plain prompt (--raw) needs no template"
SLOW, LARGE, DEEP = (
    f"it takes more than 1 s of computing{PLAIN}",
    f"it takes more than 400 MB of memory{PLAIN}",
    f"it is nested or calls itself too deeply{PLAIN}",
)
UNSAFE = "access to attribute '{}' of '{}' object is unsafe."
FAILS = "it fails on this conversation: "
HOSTILE = {
    "loops": ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", SLOW),
    "a power": ("{% set n = namespace(x=3) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}", SLOW),
    "many expressions": ("{{ x }}" * 140_000, SLOW),
    "a long text": ("{{ 'a' * 10**10 }}", LARGE),
    "a long list": ("{{ [0] * 10**10 }}", LARGE),
    "a wide number": ("{{ '%1000000000d' % 1 }}", LARGE),
    "a wide format": ("{{ '{:>1000000000}'.format(1) }}", LARGE),
    "a wide indent": ("{{ [1] | tojson(indent=10**9) }}", LARGE),
    "a wide word": ("{{ 'a' | center(10**10) }}", LARGE),
    "doubling": ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", LARGE),
    "replacing": ("{{ ('a' * 10000) | replace('a', 'b' * 100000) }}", LARGE),
    "a long output": (
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
        f"its text has 100000000 characters, more than the 10000000 that are allowed{PLAIN}",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DEEP),
    "brackets": ("{{ " + "[" * 3000 + "]" * 3000 + " }}", DEEP),
    "blocks": ("{% if 1 %}" * 2000 + "{% endif %}" * 2000, DEEP),
    "a long range": (
        "{% for i in range(10**10) %}{% endfor %}",
        f"{FAILS}OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).",
    ),
    "an overflow": (
        "{% for i in range(10**30) %}{% endfor %}",
        f"{FAILS}OverflowError: Python int too large to convert to C ssize_t",
    ),
    "a division": ("{{ 1 // 0 }}", f"{FAILS}ZeroDivisionError: integer division or modulo by zero"),
    "a file": ("{% include '/etc/passwd' %}", f"{FAILS}TypeError: no loader for this environment specified"),
    "a large template": ("a" * 1_000_001, f"it has more than the 1000000 characters that are allowed{PLAIN}"),
    "a class": ("{{ ''.__class__.__mro__ }}", UNSAFE.format("__class__", "str")),
    "a change": ("{{ messages.append(1) }}", UNSAFE.format("append", "list")),
    "a private name": (
        "{% set n = namespace(_x=1) %}", "a namespace cannot hold '_x', which begins with an underscore"
    ),
    "a missing message": ("{{ messages[9].content.x }}", "list object has no element 9"),
    "no template": ("{% for %}", "Expected an expression, got 'end of statement block'"),
    "a refusal": ("{{ raise_exception('no system\nrole') }}", r"no system\nrole"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_harm_is_one_line_in_bounded_time_and_memory(name: str) -> None:
    template, message = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(InputError) as e:
        render(template, ASK)
    assert str(e.value) == f"chat template: {message}"
    assert time.process_time() - start < 0.5, "this process computed"
    assert render("{{ messages[0].content }}!", ASK) == "x!"  # the next one


def test_the_limits_are_those_of_the_kernel() -> None:
    """Address space and processor time of the process that renders, as the kernel has them."""
    render("x", ASK)
    child = chat._renderer._child
    assert child is not None
    status = Path(f"/proc/{child.pid}/status").read_text()
    resident = int(status.split("VmHWM:")[1].split()[0])
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    space = int(limits.split("Max address space")[1].split()[0])
    assert resident < 500_000, "kB"
    assert space < 1_000_000_000


def test_a_process_that_died_is_replaced() -> None:
    render("x", ASK)
    child = chat._renderer._child
    assert child is not None
    child.kill()
    child.wait()
    assert render("y", ASK) == "y"


def test_a_process_that_gets_no_processor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits, so no limit of computing ends it."""
    monkeypatch.setattr(chat, "PATIENCE", 0.2)
    waiting = chat.Renderer("import time; time.sleep(30)", 1.0)
    expected = "it had no answer within 0.2 s; is this machine busy with other work?"
    assert waiting.ask("{}") == {"limit": expected}
    waiting.close()


def test_threads_get_their_own_texts() -> None:
    found: dict[int, set[str]] = {}

    def work(n: int) -> None:
        found[n] = {render("{{ messages[0].content * 9 }}", [{"role": "user", "content": str(n)}]) for _ in range(50)}

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {n: {str(n) * 9} for n in range(4)}
