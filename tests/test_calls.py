"""Calls that must come, of one tool, with arguments that fit: in every way to write, both engines, and the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import tiny
from conftest import to_gguf
from noise_engine import Noise
from onnx_peer import to_onnx
from server_engine import Scripted, call, serving

from sampan import runtime
from sampan.errors import InputError, ToolError
from sampan.runtime import Answer, EngineOptions, Options, Sampling, Session

ASK = [{"role": "user", "content": "How is it?"}]
WEATHER = {
    "type": "object", "additionalProperties": False, "required": ["city", "days"], "$defs": {
        "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "properties": {
        "city": {"enum": ["Lima", "Oslo", '北京 "x"']}, "days": {"$ref": "#/$defs/days"},
        "exact": {"type": ["boolean", "null"]}},
}  # fmt: skip
RUN = {
    "type": "object",
    "additionalProperties": False,
    "required": ["code"],
    "properties": {"code": {"type": "string"}},
}
SCHEMAS = {"weather": WEATHER, "run": RUN, "now": {"type": "object"}}
TEMPLATES = {
    "hermes": "{# <tool_call> arguments #}", "xml": "{# <tool_call> <function= #}",
    "kimi": "{# <|tool_calls_section_begin|> #}",
}  # fmt: skip
MARKS = [b"<tool_call>", b"</tool_call>", b"</parameter>"]
CONTROLS = [f"<|tool_{n}|>".encode() for n in ("calls_section_begin", "calls_section_end", "call_begin",
                                               "call_argument_begin", "call_end")]  # fmt: skip


def tool(name: str, *, strict: bool = True) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "strict": strict, "parameters": SCHEMAS[name]}}


TOOLS = [tool("weather"), tool("run"), tool("now", strict=False)]


class Random(Noise):
    """It chooses at random, and ends texts, and begins calls, more often than chance would have it."""

    def __init__(self, way: str) -> None:
        super().__init__(
            template=TEMPLATES[way] + "{# </think> #}{{ messages[0].content }}{% if think %}<think>{% endif %}"
        )
        self.first = len(self.pieces)
        self.pieces += MARKS + [b""] * len(CONTROLS)
        self.vocab = len(self.pieces)

    def piece(self, token: int, *, control: bool = False) -> bytes:
        at = token - self.first - len(MARKS)
        return (CONTROLS[at] if control else b"") if at >= 0 else super().piece(token, control=control)

    def evaluate(self, tokens: Any, wanted: int) -> Any:
        logits = super().evaluate(tokens, wanted)
        logits[:, [ord('"'), ord("}"), ord("\n"), ord("<"), ord("0"), 256]] += 6
        logits[:, [self.first, *range(self.first + 2, self.first + len(MARKS) + 1)]] += 4
        return logits


def answers(session: Session, n: int, **options: Any) -> Iterator[Answer]:
    """Those that ended by themselves, of `n`."""
    for seed in range(n):
        found = session.chat(ASK, TOOLS, Options(300, Sampling(1.0), seed, **options)).read()
        if found.finish_reason != "length":
            yield found


def check(answer: Answer) -> None:
    for made in answer.tool_calls:
        value = json.loads(made.arguments)
        jsonschema.validate(value, SCHEMAS[made.name])


@pytest.mark.everyday("True-hermes", "False-kimi")
@pytest.mark.parametrize("way", TEMPLATES)
@pytest.mark.parametrize("many", [True, False])
def test_a_call_that_must_come_comes_and_fits(way: str, many: bool) -> None:
    with Session(Random(way)) as session:
        found = list(answers(session, 40, must_call=True, parallel_calls=many))
        assert len(found) > 10
        for answer in found:
            assert answer.finish_reason == "tool_calls" and answer.text == "" and answer.tool_calls
            check(answer)
        assert {len(a.tool_calls) > 1 for a in found} == ({True, False} if many else {False})
        assert {c.name for a in found for c in a.tool_calls} == set(SCHEMAS)
        assert all(c.name == "now" for a in answers(session, 8, must_call="now") for c in a.tool_calls)


@pytest.mark.everyday("xml")
@pytest.mark.parametrize("way", TEMPLATES)
def test_a_call_that_may_come_fits_and_text_is_free(way: str) -> None:
    with Session(Random(way)) as session:
        found = list(answers(session, 120))
        called = [a for a in found if a.tool_calls]
        assert len(called) > 5 and len(found) - len(called) > 5
        assert any(a.text for a in called) and all(a.finish_reason == "tool_calls" for a in called)
        for answer in found:
            check(answer)
            assert way == "kimi" or "<tool_call>" not in answer.text, "what opens a call is one"


def test_reasoning_in_front_of_a_call_is_free() -> None:
    with Session(Random("hermes")) as session:
        stream = session.chat(ASK, TOOLS, Options(2000, Sampling(1.0), 3, must_call=True), think=True)
        answer = stream.read()
        assert answer.reasoning and answer.tool_calls and not answer.text
        check(answer)


def test_a_tool_that_is_not_strict_may_have_what_cannot_be_held_to() -> None:
    odd = {"type": "object", "required": ["a"], "properties": {"a": {"type": "array", "uniqueItems": True}}}
    given = {"name": "odd", "parameters": odd}
    with Session(Random("hermes")) as session:
        called = session.chat(ASK, [{"function": given}], Options(600, Sampling(1.0), 1, must_call=True)).read()
        assert isinstance(json.loads(called.tool_calls[0].arguments)["a"], list)
        with pytest.raises(ToolError) as e:
            session.chat(ASK, [tool("run"), {"function": given | {"strict": True}}])
    assert str(e.value).startswith("tools: odd: schema: #/properties/a: no answer can be held to this: Unimplemented")


def test_strict_is_not_shown_to_the_model() -> None:
    engine = Noise(template="{# <tool_call> arguments #}{{ tools | tojson }}")
    with Session(engine) as session:
        session.chat(ASK, TOOLS)
        seen = session.detokenize(session._prompt(session.tokenize_chat(ASK, TOOLS)))
        assert "strict" in seen, "who renders by hand says what is rendered"
        told: list[str] = []
        session._begin = lambda tokens, *_, **__: told.append(session.detokenize(tokens))  # type: ignore[assignment,method-assign]
        session.chat(ASK, TOOLS)
        assert "strict" not in told[0] and json.loads(told[0])[0]["function"]["parameters"] == WEATHER


REFUSED: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str]] = {
    "no tools": ("hermes", [], {"must_call": True}, "must_call: there are no tools that could be called"),
    "another name": ("hermes", TOOLS, {"must_call": "fly"}, "must_call: no tool has the name fly; there are ["),
    "an unknown way": ("", TOOLS, {"must_call": True}, "tools: it is not known how to hold the calls of this model"),
    "a name in XML": ("xml", [{"function": {"name": "a>b"}}], {"must_call": True}, "tools: a>b: a>b is no name that"),
    "a pattern in XML": (
        "xml", [{"function": {"name": "f", "strict": True, "parameters": {"properties": {"s": {"pattern": "x"}}}}}], {},
        "tools: f: s: pattern cannot be held to: this model writes texts without quotes",
    ),
    "too long": (
        "hermes", [{"function": {"name": "f", "parameters": {"properties": {"s": {"enum": ["x" * 140_000]}}}}}],
        {"must_call": True}, "schema: expected at most 131072 bytes",
    ),
    "too long together": (
        "hermes", [{"function": {"name": c * 70_000}} for c in "ab"], {"must_call": True},
        "tools: expected at most 131072",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_held_is_refused_before_work(case: str) -> None:
    way, tools, options, message = REFUSED[case]
    engine = Noise(template=TEMPLATES.get(way, "{{ tools }}") + "?")
    engine.evaluate = None  # type: ignore[assignment,method-assign] - nothing may be computed
    with Session(engine) as session, pytest.raises(InputError) as e:
        session.chat(ASK, tools, Options(**options))
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-kimi"])
def test_trained_models_in_both_engines_call(name: str, tmp_path: Path) -> None:
    """At a temperature at which neither writes a call by itself; Kimi's markers are control tokens."""
    source = tiny.FIXTURE.with_name(name)
    to_gguf(source, tmp_path / "m.gguf", "f32")
    to_onnx(source, tmp_path / "onnx", "fp32")
    found = []
    for path in (tmp_path / "m.gguf", tmp_path / "onnx"):
        with runtime.open(path, EngineOptions(threads=1, kv="f32")) as session:
            asked = [Options(400, Sampling(0.7), seed, must_call="weather", parallel_calls=False) for seed in (1, 2, 3)]
            made = [session.chat(ASK, TOOLS, o).read() for o in asked]
            for answer in made:
                assert [c.name for c in answer.tool_calls] == ["weather"] and answer.finish_reason == "tool_calls"
                check(answer)
            found.append([a.tokens for a in made])
    assert found[0] == found[1]


# The server, by OpenAI's own client


@pytest.fixture
def ask() -> Iterator[Callable[..., openai.OpenAI]]:
    opened = []

    def start(say: Callable[[str], str]) -> openai.OpenAI:
        entered = serving(Session(Scripted(say)))
        opened.append(entered)
        return openai.OpenAI(base_url=f"{entered.__enter__()[0]}/v1", api_key="none", max_retries=0, timeout=60)

    yield start
    for entered in opened:
        entered.__exit__(None, None, None)


def made(answer: Any) -> list[tuple[str, Mapping[str, Any]]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in answer.choices[0].message.tool_calls or ()]


def test_the_server_forces_what_is_asked(ask: Callable[..., openai.OpenAI]) -> None:
    """The model wants to talk."""
    ai = ask(lambda text: "It rains.")
    given: dict[str, Any] = {"model": "tiny", "messages": ASK, "tools": TOOLS[:2], "max_tokens": 3000}
    assert ai.chat.completions.create(**given).choices[0].message.content == "It rains."
    given["temperature"] = 1.0
    for seed in range(3):
        forced = ai.chat.completions.create(**given, seed=seed, tool_choice="required", parallel_tool_calls=False)
        (one,) = made(forced)
        assert forced.choices[0].finish_reason == "tool_calls"
        jsonschema.validate(one[1], SCHEMAS[one[0]])
    named = {"type": "function", "function": {"name": "weather"}}
    ((name, arguments),) = made(ai.chat.completions.create(**given, tool_choice=named, parallel_tool_calls=False))
    assert name == "weather" and arguments["city"] in WEATHER["properties"]["city"]["enum"]  # type: ignore[index]


def test_the_server_holds_strict_tools_to_their_schema(ask: Callable[..., openai.OpenAI]) -> None:
    """The model writes a call with arguments that the tool does not have."""
    ai = ask(lambda text: call("weather", city="Rome", days=9))
    loose = {"model": "tiny", "messages": ASK, "tools": [tool("weather", strict=False)], "max_tokens": 2000}
    assert made(ai.chat.completions.create(**loose)) == [("weather", {"city": "Rome", "days": 9})]
    held = loose | {"tools": [tool("weather")], "temperature": 1.0, "seed": 1, "parallel_tool_calls": False}
    ((_, arguments),) = made(ai.chat.completions.create(**held))
    jsonschema.validate(arguments, WEATHER)
    with ai.chat.completions.stream(**held) as stream:
        for _ in stream:
            pass
        assert made(stream.get_final_completion()) == [("weather", arguments)]


@pytest.mark.parametrize("strict", [True, False])
def test_a_closing_marker_in_an_argument_ends_no_call_that_is_held(
    strict: bool, ask: Callable[..., openai.OpenAI]
) -> None:
    code = 'print("</tool_call>")'
    ai = ask(lambda text: call("run", code=code))
    answer = ai.chat.completions.create(model="tiny", messages=ASK, tools=[tool("run", strict=strict)], max_tokens=300)
    arguments = answer.choices[0].message.tool_calls[0].function.arguments
    assert (arguments == json.dumps({"code": code})) == strict


def test_the_server_names_what_it_cannot_hold(ask: Callable[..., openai.OpenAI]) -> None:
    ai = ask(lambda text: "")
    given: dict[str, Any] = {"model": "tiny", "messages": ASK}
    odd = {
        "type": "function",
        "function": {"name": "odd", "strict": True, "parameters": {"properties": {"a": {"not": {}}}}},
    }
    named = {"type": "function", "function": {"name": "fly"}}
    for more, param, message in (
        ({"tools": [odd]}, "tools", "odd: schema: #/properties/a: no answer can be held to this"),
        ({"tools": TOOLS, "tool_choice": named}, "tool_choice", "no tool has the name fly"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools that could be called"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tools": TOOLS, "tool_choice": "must"}, "tool_choice", "expected none, auto, required or a function"),
    ):
        with pytest.raises(openai.BadRequestError) as e:
            ai.chat.completions.create(**given, **more)
        assert e.value.param == param and message in str(e.value)
