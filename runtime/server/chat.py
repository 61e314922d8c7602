"""`/v1/chat/completions`: a request read, an answer written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sampan.chat_template import choose
from sampan.errors import brief

from ..chat import ARGUMENTS
from ..session import Session
from ..stream import Chunk, Stream
from .fields import COMMON, TOKENS, TOP_LOGPROBS, Asked, Check, integer, mapping, options, read, switch
from .refusals import bad
from .settings import Settings

PREFIX, WHOLE, PART = "chatcmpl-", "chat.completion", "chat.completion.chunk"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
KEYS = {"role", "content", "name"}
MORE = {"assistant": {"tool_calls", "reasoning_content"}, "tool": {"tool_call_id"}}
FUNCTION = {"name", "description", "parameters", "strict"}
CHOICES: dict[str, bool | None] = {"none": None, "auto": False, "required": True}
SMALLEST = -9999.0  # OpenAI's own number for what is as good as impossible


def messages(name: str, value: Any) -> list[dict[str, Any]]:
    """A check: a conversation as templates take it."""
    if not isinstance(value, list) or not value:
        raise bad(name, f"expected a list of at least one message, found {brief(value)}")
    return [_message(f"{name}[{i}]", m) for i, m in enumerate(value)]


def _message(name: str, value: Any) -> dict[str, Any]:
    role = mapping(name, value).get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad(f"{name}.role", f"expected one of {', '.join(ROLES)}, found {brief(role)}")
    found: dict[str, Any] = {"role": ROLES[role], "content": _content(f"{name}.content", value.get("content"), role)}
    for key, given in value.items():
        if key in ("role", "content") or given is None:
            continue
        if key not in KEYS | MORE.get(role, set()):
            raise bad(f"{name}.{brief(key)}", f"this field is not known in a message of role {role}; leave it out")
        if key == "tool_calls":
            if not isinstance(given, list):
                raise bad(f"{name}.{key}", f"expected a list, found {brief(given)}")
            found[key] = [_call(f"{name}.{key}[{i}]", c) for i, c in enumerate(given)]
        else:
            found[key] = _text(f"{name}.{key}", given)
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise bad(name, f"expected a text, found {brief(value)}")
    return value


def _content(name: str, value: Any, role: str) -> str:
    """Parts of text become one text, a line for each."""
    if value is None and role == "assistant":
        return ""
    if not isinstance(value, list):
        return _text(name, value)
    texts = []
    for i, part in enumerate(value):
        if mapping(f"{name}[{i}]", part).get("type") != "text":
            raise bad(f"{name}[{i}].type", f"only text can be read, found {brief(part.get('type'))}")
        texts.append(_text(f"{name}[{i}].text", part.get("text")))
    return "\n".join(texts)


def _call(name: str, value: Any) -> dict[str, Any]:
    """A call of an earlier answer; templates want its arguments as an object."""
    if mapping(name, value).get("type", "function") != "function":
        raise bad(f"{name}.type", f"expected function, found {brief(value['type'])}")
    function = mapping(f"{name}.function", value.get("function"))
    text = _text(f"{name}.function.arguments", function.get("arguments"))
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise bad(f"{name}.function.arguments", f"expected the text of a JSON object, found {brief(text)}")
    called = {"name": _text(f"{name}.function.name", function.get("name")), "arguments": arguments}
    return {"id": _text(f"{name}.id", value.get("id", "")), "type": "function", "function": called}


def tools(name: str, value: Any) -> list[dict[str, Any]]:
    """A check: functions with the schemas of their parameters."""
    if not isinstance(value, list):
        raise bad(name, f"expected a list, found {brief(value)}")
    found = []
    for i, tool in enumerate(value):
        at = f"{name}[{i}]"
        if mapping(at, tool).get("type") != "function":
            raise bad(f"{at}.type", f"expected function, found {brief(tool.get('type'))}")
        function = mapping(f"{at}.function", tool.get("function"))
        for key in function.keys() - FUNCTION:
            raise bad(f"{at}.function.{brief(key)}", "this field is not known; leave it out")
        switch(f"{at}.function.strict", function.get("strict") or False)
        _text(f"{at}.function.name", function.get("name"))
        _text(f"{at}.function.description", function.get("description") or "")
        mapping(f"{at}.function.parameters", function.get("parameters") or {})
        plain = {k: v for k, v in function.items() if v is not None}
        found.append({"type": "function", "function": plain})
    return found


def choice(name: str, value: Any) -> bool | str | None:
    """A check: whether a tool must be called, or which; None where none may be."""
    if isinstance(value, str) and value in CHOICES:
        return CHOICES[value]
    if not isinstance(value, dict) or value.get("type") != "function":
        raise bad(name, f"expected {', '.join(CHOICES)} or a function, found {brief(value)}")
    return _text(f"{name}.function.name", mapping(f"{name}.function", value.get("function")).get("name"))


def variables(name: str, value: Any) -> dict[str, Any]:
    """A check: variables of the chat template, none of them a part of the conversation."""
    for key in mapping(name, value):
        if key in ARGUMENTS:
            raise bad(f"{name}.{key}", "this is no variable of a template; leave it out")
    return dict(value)


KNOWN: dict[str, Check] = COMMON | {
    "messages": messages,
    "tools": tools,
    "tool_choice": choice,
    "parallel_tool_calls": switch,
    "max_completion_tokens": TOKENS,
    "logprobs": switch,
    "top_logprobs": integer(0, TOP_LOGPROBS),
    "chat_template_kwargs": variables,
}


def parse(body: Any, session: Session, settings: Settings) -> Asked:
    """The request, checked."""
    found = read(body, KNOWN, settings.name)
    if "messages" not in found:
        raise bad("messages", "it is missing; give the conversation")
    wants = found.get("logprobs", False)
    if "top_logprobs" in found and not wants:
        raise bad("top_logprobs", "it needs logprobs true")
    chosen = found.pop("tool_choice", False)
    called = (found.get("tools") or None) if chosen is not None else None
    if called:
        found["tool_choice"] = chosen
    if chosen and chosen not in (True, *(t["function"]["name"] for t in called or ())):
        raise bad("tool_choice", f"no tool has the name {brief(chosen)}")
    if chosen and not called:
        raise bad("tool_choice", "there are no tools that could be called; give tools, or auto")
    name = found.get("chat_template_kwargs", {}).get("chat_template")
    if called and "tools" not in choose(session.chat_templates, tools=True, name=name):
        raise bad("tools", "this model's chat template knows no tools; leave them out")
    if called and found.get("response_format") is not None:
        raise bad("response_format", "an answer that is held to a schema calls no tools; leave it out, or the tools")
    return Asked(
        options(found, session, settings, found.get("top_logprobs", 0) if wants else None),
        messages=found["messages"],
        tools=called,
        variables=found.get("chat_template_kwargs", {}),
        stream=found.get("stream", False),
        usage=found.get("stream_options", False),
    )


def begin(asked: Asked, session: Session) -> Stream:
    """Start to answer."""
    named = asked.variables or {}
    return session.chat(asked.messages or [], asked.tools, asked.options, sanitize_control_tokens=True, **named)


def whole(chunks: Sequence[Chunk], stream: Stream, asked: Asked) -> dict[str, Any]:
    """The one choice of an answer that is not streamed."""
    answer = stream.whole(chunks)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text or None if answer.tool_calls else answer.text,
    }
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in answer.tool_calls
        ]
    return {"message": message, "logprobs": _logprobs(chunks, asked)}


def first() -> dict[str, Any]:
    """What opens a streamed answer."""
    return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}


def part(chunk: Chunk, asked: Asked) -> dict[str, Any] | None:
    """The choice of a streamed event; None where a chunk lets out nothing."""
    delta: dict[str, Any] = {}
    if chunk.text:
        delta["content"] = chunk.text
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if chunk.tool_calls:
        delta["tool_calls"] = [
            {"index": d.index, "function": {"arguments": d.arguments} | ({"name": d.name} if d.name else {})}
            | ({"id": d.id, "type": "function"} if d.id else {})
            for d in chunk.tool_calls
        ]
    logprobs = _logprobs([chunk], asked)
    if not delta and not (logprobs and logprobs["content"]):
        return None
    return {"delta": delta, "logprobs": logprobs}


def last() -> dict[str, Any]:
    """What closes a streamed answer."""
    return {"delta": {}, "logprobs": None}


def _logprobs(chunks: Sequence[Chunk], asked: Asked) -> dict[str, Any] | None:
    if asked.options.logprobs is None:
        return None
    return {"content": [
        _token(c.raw, c.logprob) | {"top_logprobs": [_token(t.raw, t.logprob) for t in c.top]}
        for c in chunks if c.raw and c.logprob is not None
    ], "refusal": None}  # fmt: skip


def _token(raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": raw.decode(errors="replace"), "bytes": list(raw), "logprob": max(logprob, SMALLEST)}
