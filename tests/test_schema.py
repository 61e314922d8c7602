"""Answers that are held to a schema: valid by an independent validator, by masks that are exact, in both engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from noise_engine import DONE, END, OTHER_END, THINK, Noise
from onnx_peer import to_onnx
from server_engine import Scripted

from sampan import runtime
from sampan.errors import InputError, SchemaError
from sampan.runtime import EngineOptions, Options, Sampling, Session
from sampan.runtime.grammar import Constraint, Words, source
from sampan.runtime.sampling import Sampler

ASK = [{"role": "user", "content": "What is the capital of Peru?"}]
CITY = {
    "type": "object", "additionalProperties": False, "required": ["city", "people"],
    "properties": {"city": {"type": "string", "maxLength": 12},
                   "people": {"type": "integer", "minimum": 0, "maximum": 99},
                   "tags": {"type": "array", "items": {"enum": ["old", "wet", None]}, "maxItems": 3}},
}  # fmt: skip
TREE = {
    "$defs": {"node": {"anyOf": [{"type": "null"},
                                 {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}]}},
    "type": "array", "prefixItems": [{"const": "tree"}, {"$ref": "#/$defs/node"}], "minItems": 2, "items": False,
}  # fmt: skip
TEXT = {"type": "string", "pattern": "^[a-c]{2,5}(é|中)$"}
SCHEMAS = {"city": CITY, "tree": TREE, "text": TEXT, "number": {"type": "number", "minimum": -2, "maximum": 17.5}}


def constraint(words: Words, options: Options) -> Constraint:
    text = source(options.schema, options.grammar)
    assert text is not None
    return Constraint(words, text)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Session]]:
    """The trained model in both engines."""
    out = tmp_path_factory.mktemp("schema")
    to_gguf(tiny.FIXTURE, out / "m.gguf", "f32")
    to_onnx(tiny.FIXTURE, out / "onnx", "fp32")
    with (
        runtime.open(out / "m.gguf", EngineOptions(threads=1)) as a,
        runtime.open(out / "onnx", EngineOptions(threads=1)) as b,
    ):
        yield [a, b]


@pytest.mark.everyday("tree", "text")
@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid_in_both_engines(name: str, opened: list[Session]) -> None:
    """By Python's json and by jsonschema; at a temperature at which the model alone writes no JSON."""
    whole = 0
    for session in opened:
        for seed in range(6):
            options = Options(300, Sampling(1.5), seed, schema=SCHEMAS[name])
            answer = session.chat(ASK, options=options).read()
            if answer.finish_reason == "stop":
                jsonschema.validate(json.loads(answer.text), SCHEMAS[name], jsonschema.Draft202012Validator)
                whole += 1
            else:
                assert answer.finish_reason == "length" and len(answer.tokens) == 300
    assert whole >= 8
    with pytest.raises(ValueError):
        json.loads(opened[0].chat(ASK, options=Options(100, Sampling(1.5), 0)).read().text)


def test_both_engines_have_the_same_masks(opened: list[Session]) -> None:
    words = [Words(s._engine) for s in opened]
    held = [constraint(w, Options(schema=CITY)) for w in words]
    rng, seen = np.random.default_rng(3), 0
    while True:
        masks = [c.allowed() for c in held]
        np.testing.assert_array_equal(*masks)
        token = int(rng.choice(np.flatnonzero(masks[0])))
        if token in words[0].ends:
            break
        assert opened[0]._engine.piece(token) == opened[1]._engine.piece(token)
        for c in held:
            c.take(token, opened[0]._engine.piece(token))
        seen += 1
    assert seen > 10


# Masks against a computation by brute force

SPACES = [b"", b" ", *(b"\n" + b" " * n for n in range(25))]
Form = tuple[bytes | None, ...]


def begins(text: bytes, form: Form) -> bool:
    """Whether a text begins one of a form: literals, and None where white space may stand."""
    if not text or not form:
        return not text
    first, rest = form[0], form[1:]
    if first is None:
        inside = any(s.startswith(text) for s in SPACES)
        return inside or any(begins(text[len(s) :], rest) for s in SPACES if text.startswith(s))
    if len(text) < len(first):
        return first.startswith(text)
    return text.startswith(first) and begins(text[len(first) :], rest)


def fits(text: bytes, form: Form) -> bool:
    """Whether a text is one of a form, whole."""
    if not form:
        return not text
    first, rest = form[0], form[1:]
    return any(text.startswith(s) and fits(text[len(s) :], rest) for s in (SPACES if first is None else [first]))


SMALL = {"type": "object", "properties": {"ab": {"enum": ["x", "é中", True]}, "c": {"type": "null"}},
         "required": ["ab"], "additionalProperties": False}  # fmt: skip
FORMS: list[Form] = [
    (b"{", None, b'"ab"', None, b":", None, value, *more, None, b"}")
    for value in (b'"x"', '"é中"'.encode(), b"true")
    for more in ((), (None, b",", None, b'"c"', None, b":", None, b"null"))
]
LARK = "start: WORD\nWORD: /(ab|a[bé]{2,3})*/ TAIL?\nTAIL: /中/"


@pytest.mark.everyday("0", "3")
@pytest.mark.parametrize("seed", range(8))
def test_a_mask_is_what_brute_force_finds(seed: int) -> None:
    """For each token: whether the text so far and its bytes begin a document; ends where the text is a document."""
    engine = Noise()
    words = Words(engine)
    held = constraint(words, Options(schema=SMALL))
    rng, text = np.random.default_rng(seed), b""
    for _ in range(60):
        allowed = held.allowed()
        expected = np.array([bool(p) and any(begins(text + p, f) for f in FORMS) for p in engine.pieces])
        expected[[END, OTHER_END]] = any(fits(text, f) for f in FORMS)
        np.testing.assert_array_equal(allowed, expected, str(text))
        token = int(rng.choice(np.flatnonzero(allowed)))
        if engine.is_end(token):
            break
        held.take(token, engine.pieces[token])
        text += engine.pieces[token]
    jsonschema.validate(json.loads(text), SMALL)


def test_a_mask_of_a_grammar_is_what_brute_force_finds() -> None:
    """Over all texts of up to four tokens: a text begins another if some end of it is in the language."""
    engine = Noise()
    words = Words(engine)
    whole = {""}
    for _ in range(4):
        whole |= {w + part for w in whole for part in ("ab", *("a" + x for x in _x()))}
    whole = {(w + tail).encode() for w in whole if len(w) < 14 for tail in ("", "中")}
    begun = {w[:n] for w in whole for n in range(len(w) + 1)}
    for text in sorted(b for b in begun if len(b) <= 4 and b[-1:] < b"\x80"):
        held = constraint(words, Options(grammar=LARK))
        for byte in text:
            held.take(byte, bytes([byte]))
        allowed = held.allowed()
        expected = np.array([bool(p) and text + p in begun for p in engine.pieces])
        expected[[END, OTHER_END]] = text in whole
        np.testing.assert_array_equal(allowed, expected, str(text))


def _x() -> list[str]:
    two = [a + b for a in "bé" for b in "bé"]
    return two + [t + c for t in two for c in "bé"]


# A grammar that allows all changes nothing


def test_what_allows_all_changes_nothing(opened: list[Session]) -> None:
    for session in opened:
        for seed in range(4):
            plain = session.chat(ASK, options=Options(40, Sampling(0.8), seed)).read()
            held = session.chat(ASK, options=Options(40, Sampling(0.8), seed, grammar="start: /(.|\\n)*/")).read()
            assert held.tokens == plain.tokens and held.text == plain.text
    rows = np.random.default_rng(1).standard_normal((50, 3000)).astype(np.float32) * 4
    for s in (Sampling(), Sampling(1.0), Sampling(0.7, 20, 0.9, 0.01, 1.2, 0.1, 0.3, {5: 1.0})):
        a, b = (Sampler(s, [1, 2], 7) for _ in range(2))
        assert [a.choose(r) for r in rows] == [b.choose(r, np.ones(3000, np.bool_)) for r in rows]


def test_only_what_is_allowed_is_drawn() -> None:
    row, allowed = np.random.default_rng(2).standard_normal(3000).astype(np.float32), np.zeros(3000, np.bool_)
    allowed[[7, 2999]] = True
    for s in (Sampling(), Sampling(1.0), Sampling(5.0, top_k=50), Sampling(1.0, top_p=0.9), Sampling(2.0, min_p=0.5),
              Sampling(1.0, 5, 0.5, 0.1, 1.5, 0.5, 0.5, {4: 100.0})):  # fmt: skip
        assert {Sampler(s, [4], seed).choose(row, allowed) for seed in range(40)} <= {7, 2999}
    row[allowed] = -np.inf
    with pytest.raises(InputError, match="rules out every token that its schema allows"):
        Sampler(Sampling(1.0), [], 0).choose(row, allowed)


def test_log_probabilities_stay_the_models_own(opened: list[Session]) -> None:
    session = opened[0]
    prompt = session.tokenize_chat(ASK)
    chunks = list(session.stream(prompt, Options(5, seed=0, logprobs=1, schema=CITY)))
    tokens = [c.token for c in chunks if c.token is not None]
    logits = session.logits([*prompt, *tokens]).astype(np.float64)
    for i, chunk in enumerate(chunks):
        row = logits[len(prompt) - 1 + i]
        own = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert chunk.logprob == pytest.approx(own[tokens[i]], abs=1e-3)
        assert chunk.top[0].logprob == pytest.approx(own.max(), abs=1e-3)


# Reasoning

THINKS = "{# </think> #}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("ending", ["", "<think>", "<think></think>"])
def test_reasoning_is_free_and_the_answer_behind_it_is_valid(ending: str) -> None:
    """With words that close the reasoning and go on, that open it again, and that end the answer inside of it."""
    engine = Noise(template=THINKS + ending)
    thoughts = 0
    with Session(engine) as session:
        for seed in range(40):
            engine.noise = np.random.default_rng(seed)
            options = Options(None, Sampling(1.0, logit_bias={DONE: 6.0, THINK: 8.0}), seed, schema=SMALL)
            answer = session.chat(ASK, options=options).read()
            jsonschema.validate(json.loads(answer.text), SMALL)
            assert answer.finish_reason == "stop"
            thoughts += THINK in answer.tokens[:1] or DONE in answer.tokens
    assert thoughts == 0 if ending == "<think></think>" else thoughts > 20


def test_markers_in_a_document_are_text() -> None:
    document = '{"ab": "<think>no</think>  <tool_call>{}</tool_call> "}'
    said = Scripted(lambda text: f"I see <b></think>{document}" if "think>" in text else document)
    schema = {"type": "object", "properties": {"ab": {"type": "string"}}, "required": ["ab"]}
    with Session(said) as session:
        thought = session.chat(ASK, options=Options(200, schema=schema), think=True).read()
        plain = session.chat(ASK, options=Options(200, schema=schema, stop="k>zz")).read()
    assert (thought.reasoning, thought.text) == ("I see <b>", document)
    assert (plain.reasoning, plain.text) == ("", document)


# What cannot be done

NOT = {
    "#/properties/a~1b/items": ({"properties": {"a/b": {"items": {"type": "strin"}}}}, "Invalid type: strin"),
    "#/$defs/x": ({"$defs": {"x": {"uniqueItems": True}}, "$ref": "#/$defs/x"}, 'Unimplemented keys: ["uniqueItems"]'),
    "#/anyOf/1": ({"anyOf": [{"type": "null"}, {"pattern": "(?=a)b"}]}, "look-around"),
    "#/properties/a": ({"properties": {"a": {"not": {}}}}, 'Unimplemented keys: ["not"]'),
    "#": ({"$ref": "#"}, "no text fits it"),
    "# ": (False, "schema is false"),
    "#  ": ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "oneOf constraints are not supported"),
    "#   ": ({"$ref": "https://example.org/schema"}, "does not fetch"),
}


@pytest.mark.parametrize("place", NOT)
def test_the_part_that_cannot_be_held_to_is_named(place: str) -> None:
    schema, reason = NOT[place]
    engine = Noise()
    engine.evaluate = None  # type: ignore[assignment,method-assign] - nothing may be computed
    with Session(engine) as session, pytest.raises(SchemaError) as e:
        session.stream("x", Options(schema=schema))
    assert str(e.value).startswith(f"schema: {place.strip()}: no answer can be held to this: ")
    assert reason in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(schema={"a": {1}}), "schema: expected an object of JSON, found Object of type set"),  # type: ignore[dict-item]
        (Options(schema={"const": float("nan")}), "schema: expected an object of JSON, found Out of range"),
        (Options(schema="{}"), "schema: expected an object, true or false, found {}"),  # type: ignore[arg-type]
        (Options(schema=True, grammar="start: /a/"), "cannot be held to a schema and to a grammar; give one of them"),
        (Options(grammar="start: foo"), 'grammar: at 1(8): unknown name: "foo"'),
        (Options(grammar="start: /(/"), "grammar: at 1(8): invalid regex"),
        (Options(grammar=" " * 200_000), "grammar: expected at most 131072 bytes, found 2000"),
        (Options(schema={"enum": ["x" * 200_000]}), "schema: expected at most 131072 bytes, found 2"),
        (Options(schema={"items": {"multipleOf": 999983}}), "schema: multipleOf: expected numbers of at most 1000"),
    ],
)
def test_what_is_no_schema_is_refused_in_a_line(options: Options, message: str) -> None:
    with Session(Noise()) as session, pytest.raises(SchemaError) as e:
        session.stream("x", options)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_tools_and_a_schema_exclude_each_other() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with Session(Noise()) as session, pytest.raises(InputError, match="held to a schema calls no tools"):
        session.chat(ASK, tools, Options(schema=True))


def test_a_schema_that_the_tokens_left_do_not_meet_ends_with_its_reason() -> None:
    with Session(Noise()) as session:
        long = {"type": "string", "minLength": 10_000}
        assert session.stream("x", Options(20, schema=long)).read().finish_reason == "length"
        full = session.stream("x", Options(None, schema=long)).read()
        assert full.finish_reason == "context" and len(full.tokens) == session.context - 1


KEYWORDS = {  # a value that forbids something, and the schema around it
    "type": "null", "enum": [1, "x"], "const": 3, "anyOf": [{"const": 1}], "allOf": [{"const": 1}],
    "oneOf": [{"const": 1}], "not": {"type": "string"}, "if": {"type": "string"},
    "$ref": "#/$defs/x", "$dynamicRef": "#/$defs/x",
    "minimum": 3, "maximum": 3, "exclusiveMinimum": 3, "exclusiveMaximum": 3, "multipleOf": 7, "minLength": 2,
    "maxLength": 2, "pattern": "^a+$", "format": "date", "items": {"type": "null"}, "prefixItems": [{"type": "null"}],
    "contains": {"type": "null"}, "minItems": 2, "maxItems": 1, "uniqueItems": True,
    "properties": {"a": {"type": "null"}},
    "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False, "required": ["a"], "minProperties": 1,
    "maxProperties": 1, "propertyNames": {"maxLength": 2}, "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}}, "unevaluatedProperties": False, "unevaluatedItems": False,
    "dependencies": {"a": ["b"]}, "additionalItems": False, "extends": {"type": "null"}, "disallow": "string",
}  # fmt: skip
KIND = {"string": ("minLength", "maxLength", "pattern", "format"),
        "object": ("Propert", "properties", "required", "depend"),
        "array": ("tems", "contains"), "number": ("imum", "multipleOf")}  # fmt: skip


def test_every_keyword_of_the_validator_is_held_or_refused() -> None:
    """What llguidance does not know it must not leave out in silence; drafts 4 to 2020-12."""
    drafts = [jsonschema.Draft4Validator, jsonschema.Draft7Validator, jsonschema.Draft202012Validator]
    named = {k for d in drafts for k in d.VALIDATORS} - {"$schema"}
    assert named <= KEYWORDS.keys() | {"then", "else"}
    held = set()
    engine = Noise()
    with Session(engine) as session:
        for key, value in KEYWORDS.items():
            kinds = [k for k, parts in KIND.items() if any(p in key for p in parts)]
            schema = {"$defs": {"x": {"type": "null"}}, key: value} | ({"type": kinds[0]} if kinds else {})
            if key == "dependencies":
                schema["$schema"] = "http://json-schema.org/draft-07/schema#"
            for seed in range(4):
                engine.noise = np.random.default_rng(seed)
                try:
                    answer = session.stream("x", Options(400, Sampling(1.0), seed, schema=schema)).read()
                except SchemaError:
                    break
                held.add(key)
                if answer.finish_reason == "stop":
                    jsonschema.validate(json.loads(answer.text), schema, format_checker=jsonschema.FormatChecker())
    assert {"type", "enum", "$ref", "pattern", "items", "required", "minimum"} <= held
    assert not {"not", "if", "uniqueItems", "contains", "dependentRequired", "unevaluatedProperties"} & held


@pytest.mark.slow
def test_the_command_holds_an_answer_to_a_schema(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    model = str(gguf("trained", "q8_0"))
    (tmp_path / "s.json").write_text(json.dumps(CITY))
    (tmp_path / "g.lark").write_text("start: /[a-z]{3}/")
    base = ["run", model, "Hi", "--threads", "1", "--seed", "1", "--temperature", "1"]
    done = run_cli(*base, "--schema", str(tmp_path / "s.json"))
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), CITY)
    done = run_cli(*base, "--schema", '{"enum": ["yes", 7]}')
    assert json.loads(done.stdout) in ("yes", 7)
    done = run_cli(*base, "--grammar", str(tmp_path / "g.lark"))
    assert len(done.stdout) == 4 and done.stdout[:3].isalpha()
    bad: Mapping[str, str] = {
        '{"type": "x"}': "error: schema: #: no answer can be held to this: Invalid type: x\n",
        "{": "error: --schema: expected JSON, found Expecting property name",
    }
    for text, message in bad.items():
        done = run_cli(*base, "--schema", text)
        assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count("\n") == 1
