"""Reasoning and calls of tools out of texts as models write them, cut into pieces anywhere."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_engines import artifacts

from sampan import registry, runtime
from sampan.runtime import Options
from sampan.runtime.reply import Parts, Reply, joined, parsers, whole_calls
from sampan.runtime.sampling import Sampler

__all__ = ["artifacts"]  # a fixture of the tests here
KNOWN = registry.load_all("sampan.runtime.parsers", "PARSER")
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": ["boolean", "null"]},
        "where": {"anyOf": [{"type": "object"}, {"type": "null"}]}, "any": {}, "at": {"$ref": "#/$defs/at"}},
        "$defs": {"at": {"type": "object"}}}}},
    {"type": "function", "function": {"name": "run_python", "parameters": {"type": "object", "properties": {
        "code": {"type": "string"}}}}},
]  # fmt: skip
CODE = 'def f(x):\n    return "<b>" + x[0] + "}"  # {\n\nf("\\n")'


def hermes(name: str, arguments: Any) -> str:
    """As the templates of Qwen2.5 and Qwen3 write a call."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def xml(name: str, arguments: dict[str, str]) -> str:
    """As those of Qwen3-Coder and Qwen3.5."""
    lines = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<tool_call>\n<function={name}>\n{lines}</function>\n</tool_call>"


def kimi(*calls: tuple[str, str]) -> str:
    """As that of Kimi K2."""
    inside = "".join(f"<|tool_call_begin|>{i}<|tool_call_argument_begin|>{a}<|tool_call_end|>" for i, a in calls)
    return f"<|tool_calls_section_begin|>{inside}<|tool_calls_section_end|>"


PEKING = {"city": '北京 "x" \\ {', "days": 2}
RECORDED: dict[str, tuple[str, str, dict[str, Any]]] = {
    # parsers, text of the model, what it says
    "reasoning": (
        "think", "<think>\nHm, 2 < 3.\n\nSo <b>.\n</think>\n\nYes.\n",
        {"reasoning": "Hm, 2 < 3.\n\nSo <b>.", "text": "Yes.\n"},
    ),
    "no reasoning": ("think", "a < b, <thin", {"text": "a < b, <thin"}),
    "empty reasoning": ("think", "<think>\n\n</think>\n\nYes", {"text": "Yes"}),
    "code behind reasoning": ("think", "<think>x</think>\n\n    indented", {"reasoning": "x", "text": "    indented"}),
    "one call": ("hermes", hermes("weather", PEKING), {"calls": [("weather", PEKING)]}),
    "words, then two calls": (
        "hermes", "I will look.\n" + hermes("weather", PEKING) + "\n" + hermes("run_python", {"code": CODE}),
        {"text": "I will look.", "calls": [("weather", PEKING), ("run_python", {"code": CODE})]},
    ),
    "arguments first": (
        "hermes", '<tool_call>\n{"arguments": {"days": 1}, "name": "weather"}\n</tool_call>',
        {"calls": [("weather", {"days": 1})]},
    ),
    "arguments as a text": (
        "hermes", '<tool_call>{"name": "weather", "arguments": "{\\"days\\": 1}"}</tool_call>',
        {"calls": [("weather", {"days": 1})]},
    ),
    "no arguments": ("hermes", '<tool_call>{"name": "now", "arguments": {}}</tool_call>', {"calls": [("now", {})]}),
    "no JSON": (
        "hermes", "See <tool_call>weather(1)</tool_call>!", {"text": "See <tool_call>weather(1)</tool_call>!"}
    ),
    "reasoning, words and a call": (
        "think hermes", "<think>\nA call </tool_call> is due.\n</think>\n\nWait.\n" + hermes("weather", PEKING),
        {"reasoning": "A call </tool_call> is due.", "text": "Wait.", "calls": [("weather", PEKING)]},
    ),
    "xml": (
        "qwen_xml", "On it.\n\n" + xml("weather", {
            "city": "12", "days": "3", "exact": "True", "where": '{"lat": 1.5}', "any": "7", "new": "8"}),
        {"text": "On it.", "calls": [
            ("weather", {"city": "12", "days": 3, "exact": True, "where": {"lat": 1.5}, "any": "7", "new": "8"})]},
    ),
    "xml of a type that is defined elsewhere": (
        "qwen_xml", xml("weather", {"at": '{"lat": 1}'}), {"calls": [("weather", {"at": {"lat": 1}})]}
    ),
    "xml of code": (
        "qwen_xml", xml("run_python", {"code": CODE}) + "\n" + xml("now", {}),
        {"calls": [("run_python", {"code": CODE}), ("now", {})]},
    ),
    "xml of wrong types": (
        "qwen_xml", xml("weather", {"days": "many", "exact": "None", "where": "{"}),
        {"calls": [("weather", {"days": "many", "exact": None, "where": "{"})]},
    ),
    "xml without the outer marker": (
        "qwen_xml", "<function=weather>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        {"calls": [("weather", {"days": 3})]},
    ),
    "xml that is none": (
        "qwen_xml", "<tool_call>\n{}\n</tool_call>", {"text": "<tool_call>\n{}\n</tool_call>"}
    ),
    "kimi": (
        "think kimi", "<think>so</think>Looking." + kimi(
            ("functions.weather:0", json.dumps(PEKING)), ("functions.run_python:1", json.dumps({"code": CODE}))),
        {"reasoning": "so", "text": "Looking.", "calls": [("weather", PEKING), ("run_python", {"code": CODE})],
         "ids": ["functions.weather:0", "functions.run_python:1"]},
    ),
    "kimi with a bare id": ("kimi", kimi(("weather", "{}")), {"calls": [("weather", {})], "ids": ["weather"]}),
}  # fmt: skip


def read(names: str, pieces: list[str], prompt: str = "", whole: bool = True) -> tuple[Parts, list[Parts]]:
    reply = Reply([KNOWN[n] for n in names.split()], TOOLS, prompt)
    steps = [*(reply.feed(p) for p in pieces), reply.close(whole=whole)]
    return joined(steps), steps


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_texts_in_any_pieces(name: str) -> None:
    names, text, expected = RECORDED[name]
    rng = np.random.default_rng(0)
    cuts: list[Any] = [[], range(1, len(text)), *(sorted(rng.integers(0, len(text), 4)) for _ in range(60))]
    for cut in cuts:
        edges = [0, *(int(c) for c in cut), len(text)]
        found, steps = read(names, [text[a:b] for a, b in itertools.pairwise(edges)])
        calls = whole_calls(found.calls)
        assert (found.text, found.reasoning) == (expected.get("text", ""), expected.get("reasoning", ""))
        assert [(c.name, json.loads(c.arguments)) for c in calls] == expected.get("calls", [])
        assert len({c.id for c in calls}) == len(calls) and all(c.id for c in calls)
        if "ids" in expected:
            assert [c.id for c in calls] == expected["ids"]
        first: set[int] = set()
        for delta in (d for s in steps for d in s.calls):
            assert bool(delta.name) == bool(delta.id) == (delta.index not in first), "the name comes once and first"
            first.add(delta.index)


def test_arguments_and_reasoning_come_as_they_are_written() -> None:
    for names, text in (
        ("hermes", hermes("run_python", {"code": "x" * 500})),
        ("kimi", kimi(("functions.run_python:0", json.dumps({"code": "x" * 500})))),
        ("think", "<think>" + "x" * 500),
    ):
        _, steps = read(names, list(text))
        said = [len(s.reasoning) + sum(len(d.arguments) for d in s.calls) for s in steps]
        assert max(said) <= 2 and sum(n > 0 for n in said) >= 500
    steps = read("qwen_xml", list(xml("f", {"a": "1", "b": "2"})))[1]
    assert [d.arguments for s in steps for d in s.calls] == ["{", '"a": "1"', ', "b": "2"', "}"]


def test_no_part_of_a_marker_is_ever_shown() -> None:
    """Wherever the answer stands, what was shown is how it will begin."""
    for names, text, expected in RECORDED.values():
        steps = read(names, list(text))[1]
        for n in range(len(text)):
            shown = joined(steps[:n])
            assert expected.get("text", "").startswith(shown.text)
            assert expected.get("reasoning", "").startswith(shown.reasoning)


def test_a_prompt_that_opens_the_reasoning() -> None:
    for prompt, reasoning, text in (
        ("<|im_start|>assistant\n<think>\n", "so", "it is"), ("…<think>\n\n</think>\n\n", "", "so</think>\n\nit is"),
    ):  # fmt: skip
        found, _ = read("think hermes", ["so", "</thi", "nk>\n\nit is"], prompt)
        assert (found.reasoning, found.text) == (reasoning, text)


def test_an_answer_that_was_cut() -> None:
    """A call that was not begun is dropped; one that was stays as far as it came."""
    assert read("hermes", ['Hi\n<tool_call>\n{"na'], whole=False)[0] == Parts("Hi")
    assert read("qwen_xml", ["Hi\n<tool_call>\n<funct"], whole=False)[0] == Parts("Hi")
    found, _ = read("hermes", ['<tool_call>{"name": "f", "arguments": {"a": [1, '], whole=False)
    assert [(c.name, c.arguments) for c in whole_calls(found.calls)] == [("f", '{"a": [1, ')]
    found, _ = read("qwen_xml", ["<tool_call><function=f><parameter=a>1</parameter><para"], whole=False)
    assert [(c.name, c.arguments) for c in whole_calls(found.calls)] == [("f", '{"a": "1"')]


@pytest.mark.slow
def test_hostile_texts_end() -> None:
    """Deep nesting, long names and endless markers: no fault, and no time that grows with the square."""
    for names in ("think hermes", "think qwen_xml", "think kimi"):
        for text in (
            "<tool_call>" * 3000, "<tool_call>" + "[" * 20_000, '<tool_call>{"name": "' + "a" * 20_000,
            "<tool_call><function=f>" + "<parameter=a>" * 2000, "<|tool_calls_section_begin|>" * 1000,
            "<think>" * 2000 + "</think>" * 2000, '<tool_call>{"name": "f", "arguments": {' + "}" * 9,
            '<tool_call>{"arguments": ' + "[" * 9000 + "</tool_call>", "<tool_call>5</tool_call>",
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            '<tool_call>{"name": "\\q", "arguments": {}}</tool_call>',
        ):  # fmt: skip
            found, _ = read(names, [text[i : i + 7] for i in range(0, len(text), 7)])
            assert len(found.text) <= len(text)


TEMPLATES = {p.stem: p.read_text() for p in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
CHOSEN = {
    "qwen2_5": "hermes",
    "qwen3": "hermes think",
    "qwen3_coder": "",
    "kimi_k2": "kimi",
    "kimi_k2_5": "think",
    "glm4": "think",
}


def test_the_template_chooses() -> None:
    def chosen(template: str, tools: Any = TOOLS) -> str:
        ours = parsers(template, tools)
        return " ".join(sorted(n for n, p in KNOWN.items() if p in ours))

    real = {  # what the templates of the families write, in their own words
        '<tool_call>\n{"name": "\' + tool_call.name + \'", "arguments": \'': "hermes",
        '<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args>}\\n</tool_call> </think>': "hermes think",
        "'<tool_call>\n<function=' + tool_call.name arguments": "qwen_xml",
        "<tool_call>{{ name }}<arg_key>k</arg_key> arguments </think>": "think",
        "<minimax:tool_call> arguments": "",
    }
    for template, names in real.items():
        assert chosen(template) == names
    for name, names in CHOSEN.items():
        assert chosen(TEMPLATES[name]) == names, name
    assert chosen(next(iter(real)), None) == chosen(next(iter(real)), []) == "", "without tools nothing is a call"


# In a Session


def scripted(session: runtime.Session, monkeypatch: pytest.MonkeyPatch, text: str, end: bool = True) -> None:
    """Let the model answer with this text, whatever it thinks."""
    tokens = iter([*session.tokenize(text), *([session.tokenize("<|im_end|>")[0]] if end else [])])
    monkeypatch.setattr(Sampler, "choose", lambda *_: next(tokens))


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_a_conversation_with_tools(engine: str, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said = "<think>\nLook it up.\n</think>\n\nOne moment.\n" + hermes("weather", PEKING)
    template = "{{ messages[-1].content }}<think></think>{# <tool_call> arguments #}"
    with runtime.open(artifacts[engine], runtime.EngineOptions(context=512, threads=1)) as session:
        session.metadata = {**session.metadata, "tokenizer.chat_template": template}
        for tools, reason in ((TOOLS, "tool_calls"), (None, "stop")):
            scripted(session, monkeypatch, said)
            answer = session.chat([{"role": "user", "content": "?"}], tools, Options(max_tokens=None)).read()
            assert answer.finish_reason == reason and answer.reasoning == "Look it up."
            if tools:
                assert answer.text == "One moment."
                (call,) = answer.tool_calls
                assert (call.name, json.loads(call.arguments)) == ("weather", PEKING)
                function = {"name": "weather", "arguments": PEKING}
                assert answer.message() == {
                    "role": "assistant", "content": "One moment.", "reasoning_content": "Look it up.",
                    "tool_calls": [{"id": call.id, "type": "function", "function": function}],
                }  # fmt: skip
            else:
                assert answer.text == said.partition("</think>\n\n")[2] and answer.tool_calls == ()
        scripted(session, monkeypatch, said)
        cut = session.chat(
            [{"role": "user", "content": "?"}], TOOLS, Options(max_tokens=len(session.tokenize(said)) - 9)
        )
        assert cut.read().finish_reason == "length"
        scripted(session, monkeypatch, said)
        assert said.startswith(session.generate("x", Options(max_tokens=20))), "a plain text is not parsed"


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_markers_that_are_control_tokens(
    engine: str, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes are none; a parser that asks for one reads it, and nobody else sees it."""
    template = "{{ messages[-1].content }}{# <|tool_calls_section_begin|> #}"
    with runtime.open(artifacts[engine], runtime.EngineOptions(context=512, threads=1)) as session:
        start, end = (session.tokenize(w)[0] for w in ("<|im_start|>", "<|endoftext|>"))
        assert session._engine.piece(start) == b"" != session._engine.piece(start, control=True)
        parser = KNOWN["kimi"]
        renamed = {"<|im_start|>": "<|tool_calls_section_end|>"}
        monkeypatch.setattr("sampan.runtime.session.parsers", lambda *_: [
            type(parser)(parser.claims, renamed, parser.block, parser.inner)])  # fmt: skip
        session.metadata = {**session.metadata, "tokenizer.chat_template": template}
        scripted(
            session,
            monkeypatch,
            "Hi <|im_start|>" + kimi(("functions.f:0", "{}"))[len("<|tool_calls_section_begin|>") :],
        )
        answer = session.chat([{"role": "user", "content": "?"}], TOOLS).read()
        assert (answer.text, answer.finish_reason) == ("Hi", "tool_calls") and end != start
        assert [(c.id, c.name, c.arguments) for c in answer.tool_calls] == [("functions.f:0", "f", "{}")]
