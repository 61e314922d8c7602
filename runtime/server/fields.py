"""The fields of a request: what each may be. Unknown ones are refused by name, harmless ones ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sampan.errors import brief

from ..sampling import Sampling
from ..session import Session
from ..stream import Options
from .refusals import RefusalError, bad
from .settings import Settings

HARMLESS = {  # they change nothing in an answer
    "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
FIXED: dict[str, tuple[Any, ...]] = {  # fields of which one value is what we do anyway
    "n": (1,), "best_of": (1,), "echo": (False,), "modalities": (["text"],),
    "suffix": ("",),
}  # fmt: skip
UNBUILT = {
    "functions": "this is the old form; give tools",
    "function_call": "this is the old form; give tool_choice",
}
STOPS = 16
TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of either kind; `messages` or `prompt` is there."""

    options: Options
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None
    stream: bool = False
    usage: bool = False  # a last event with the usage


def number(low: float, high: float) -> Callable[[str, Any], float]:
    """A check: a number from `low` to `high`."""

    def check(name: str, value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:  # NaN is in no range
            raise bad(name, f"expected a number from {low:g} to {high:g}, found {brief(value)}")
        return float(value)

    return check


def integer(low: int, high: int) -> Callable[[str, Any], int]:
    """A check: a whole number from `low` to `high`."""

    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise bad(name, f"expected a whole number from {low} to {high}, found {brief(value)}")
        return value

    return check


def switch(name: str, value: Any) -> bool:
    """A check: true or false."""
    if type(value) is not bool:
        raise bad(name, f"expected true or false, found {brief(value)}")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A check: an object."""
    if not isinstance(value, dict):
        raise bad(name, f"expected an object, found {brief(value)}")
    return value


def stops(name: str, value: Any) -> tuple[str, ...]:
    """A check: a text, or a few."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > STOPS or not all(isinstance(t, str) and t for t in texts):
        raise bad(name, f"expected a text, or up to {STOPS}, none of them empty, found {brief(value)}")
    return tuple(texts)


def biases(name: str, value: Any) -> dict[int, float]:
    """A check: token ids, as JSON has them, and what is added to their logits."""
    found = {}
    for key, bias in mapping(name, value).items():
        if not key.isdecimal() or len(key) > 9:
            raise bad(name, f"expected token ids as keys, found {brief(key)}")
        found[int(key)] = number(-100, 100)(f"{name}.{key}", bias)
    return found


def stream_options(name: str, value: Any) -> bool:
    """A check: whether the usage is wanted."""
    for key in mapping(name, value):
        if key not in ("include_usage", "include_obfuscation"):
            raise bad(f"{name}.{brief(key)}", "this field is not known; leave it out")
    return switch(f"{name}.include_usage", value.get("include_usage", False))


def response_format(name: str, value: Any) -> dict[str, Any] | bool | None:
    """A check: the schema that an answer is held to, `strict` or not; None where it is free."""
    kind = mapping(name, value).get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise bad(f"{name}.type", f"expected text, json_object or json_schema, found {brief(kind)}")
    for key in value.keys() - {"type", kind if kind == "json_schema" else "type"}:
        raise bad(f"{name}.{brief(key)}", f"this field is not known beside type {kind}; leave it out")
    if kind != "json_schema":
        return {"type": "object"} if kind == "json_object" else None
    inner = mapping(f"{name}.{kind}", value.get(kind))
    for key in inner.keys() - {"name", "description", "schema", "strict"}:
        raise bad(f"{name}.{kind}.{brief(key)}", "this field is not known; leave it out")
    switch(f"{name}.{kind}.strict", inner.get("strict") or False)
    schema = inner.get("schema")
    return schema if isinstance(schema, bool) else mapping(f"{name}.{kind}.schema", schema)


Check = Callable[[str, Any], Any]
TOKENS = integer(1, 2**31 - 1)
SAMPLING: dict[str, Check] = {
    "temperature": number(0, 100),
    "top_k": integer(0, 2**31 - 1),
    "top_p": number(0, 1),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 100),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "logit_bias": biases,
}
COMMON: dict[str, Check] = SAMPLING | {
    "max_tokens": TOKENS,
    "response_format": response_format,
    "seed": integer(0, 2**63 - 1),
    "stop": stops,
    "stream": switch,
    "stream_options": stream_options,
}


def read(body: Any, known: Mapping[str, Check], model: str) -> dict[str, Any]:
    """The checked values of the fields that are there; null is as if left out."""
    if not isinstance(body, dict):
        raise bad(None, f"expected a JSON object, found {brief(body)}")
    found = {}
    for name, value in body.items():
        if value is None or name in HARMLESS:
            continue
        if name == "model":
            if value != model:
                raise RefusalError(404, f"model: expected {model}, the one that is served, found {brief(value)}",
                                   "model", "model_not_found")  # fmt: skip
        elif name in known:
            found[name] = known[name](name, value)
        elif not any(value == v and type(value) is type(v) for v in FIXED.get(name, ())):
            raise bad(brief(name), UNBUILT.get(name) or _only(name, value))
    if "stream_options" in found and not found.get("stream"):
        raise bad("stream_options", "it is for streamed answers; give stream true, or leave it out")
    return found


def _only(name: str, value: Any) -> str:
    if values := FIXED.get(name):
        return f"{brief(value)} is not built; give {' or '.join(map(repr, values))}, or leave it out"
    return "this field is not known; leave it out"


def options(found: Mapping[str, Any], session: Session, settings: Settings, logprobs: int | None) -> Options:
    """How to answer: the model's own sampling where the request says nothing.

    An answer that nobody bounds is bounded by the context, also where that is shifted.
    """
    asked = found.get("max_completion_tokens", found.get("max_tokens"))
    most = min((n for n in (asked, settings.max_tokens) if n is not None), default=None)
    if most is None and settings.shift is not None:
        most = session.context
    names = {f.name for f in fields(Sampling)}
    sampling = replace(session.sampling, **{k: v for k, v in found.items() if k in names})
    return Options(
        most, sampling, found.get("seed"), found.get("stop", ()), logprobs, found.get("response_format"),
        shift=settings.shift, must_call=found.get("tool_choice", False),
        parallel_calls=found.get("parallel_tool_calls", True),
    )  # fmt: skip
