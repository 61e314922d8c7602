"""Schemas and grammars that strangers may send: bounded in time, and no end of the process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from noise_engine import Noise

from sampan.errors import SchemaError
from sampan.runtime import Options, Sampling, Session


def _chain(link: Callable[[int], Any], size: int) -> dict[str, Any]:
    """Definitions that lead one to the next, as many as fit."""
    found: dict[str, Any] = {}
    while size > 0:
        found[str(len(found))] = part = link(len(found) + 1)
        size -= len(json.dumps(part, separators=(",", ":"))) + len(str(len(found))) + 4
    return {"$defs": found | {str(len(found)): {"type": "string"}}, "$ref": "#/$defs/0"}


def _ref(n: int) -> dict[str, str]:
    return {"$ref": f"#/$defs/{n}"}


SIZE = 129_000
HOSTILE: dict[str, Any] = {
    "references": lambda: _chain(_ref, SIZE),
    "objects": lambda: _chain(lambda n: {"properties": {"a": _ref(n)}}, SIZE),
    "lists": lambda: _chain(lambda n: {"items": _ref(n)}, SIZE),
    "all": lambda: _chain(lambda n: {"allOf": [_ref(n)]}, SIZE),
    "nested": lambda: json.loads('{"items":' * 500 + "{}" + "}" * 500),
    "twice": lambda: _chain(lambda n: {"anyOf": [_ref(n), _ref(n)]}, 3000),
    "products": lambda: {"allOf": [{"anyOf": [{"maxLength": 9 * i + j} for j in range(5)]} for i in range(14)]},
    "names": lambda: {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(5000)}},
    "regex": lambda: {"type": "string", "pattern": "^(.*a.{20}|.*b.{30}|.*c.{40}){50}$"},
    "counts": lambda: {"type": "array", "minItems": 10**9, "items": {"type": "string", "minLength": 10**9}},
    "multiples": lambda: {"prefixItems": [{"type": "integer", "multipleOf": 9973}] * 10, "minItems": 10},
    "parentheses": lambda: {"type": "string", "pattern": "(" * 20_000 + ")" * 20_000},
}


@pytest.mark.everyday(
    "references", "objects", "all", "twice", "products", "regex", "counts", "multiples", "parentheses"
)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_cost_little(name: str) -> None:
    """Seconds of the processor for compiling and 50 tokens; refused in a line, or held to."""
    with Session(Noise()) as session:
        began = time.process_time()
        try:
            session.stream("x", Options(50, Sampling(1.0), 0, schema=HOSTILE[name]())).read()
        except SchemaError as e:
            assert "\n" not in str(e) and len(str(e)) < 500 and "131072" not in str(e)
        assert time.process_time() - began < 15


def test_a_chain_of_rules_does_not_end_the_process() -> None:
    rules = "\n".join(f"r{i}:r{i + 1}" for i in range(9000))
    with Session(Noise()) as session:
        assert session.generate("x", Options(5, grammar=f'start: r0\n{rules}\nr9000: "ab"')) == "ab"
    before = threading.stack_size()
    assert before == 0, "threads that others start have the system's stack"
