"""What a server refuses: the wrong request, the stranger, the flood; and that it lives on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from raw_http import CHAT, answered, exchange, post, refused, request
from server_engine import Scripted, serving

from sampan.errors import InputError
from sampan.runtime import Session
from sampan.runtime.server import endpoint
from sampan.runtime.server.settings import Settings


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Session(Scripted(lambda text: "yes")), max_body=100_000) as (url, _):
        yield url
        status, _, answer = post(url, CHAT)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "yes"), "it lives on"


DEEP = b'{"messages": ' + b"[" * 40_000 + b"]" * 40_000 + b"}"
BODIES = {
    b"": "the body is no JSON",
    b"{": "the body is no JSON: Expecting property name",
    b'{"messages": "\xff"}': "the body is no UTF-8: byte 14 is 0xff",
    b'{"messages": "\xed\xa0\x80"}': "the body is no UTF-8: byte 14 is 0xed",
    b"[1]": "expected a JSON object",
    b"null": "expected a JSON object",
    b'{"temperature": NaN}': "NaN is none of its numbers",
    b'{"seed": ' + b"9" * 5000 + b"}": "the body is no JSON: Exceeds the limit",
    DEEP: "nested too deep",
}


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b[:20].decode("latin-1"))
def test_a_body_that_is_no_request(url: str, body: bytes) -> None:
    refused(post(url, body), 400, BODIES[body])


CALLED = {"type": "function", "function": {"name": "f", "arguments": "{"}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": None}, "messages", "it is missing"),
    ({"messages": [1]}, "messages[0]", "expected an object"),
    ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "system, developer, user"),
    ({"messages": [{"role": ["user"], "content": ""}]}, "messages[0].role", "system, developer, user"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "expected a text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "only text"),
    ({"messages": [{"role": "user", "content": "", "audio": 1}]}, "messages[0].audio", "not known"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALLED]}]}, "messages[0].tool_calls[0].function.arguments",
     "expected the text of a JSON object"),
    ({"response_format": "json"}, "response_format", "expected an object"),
    ({"response_format": {"type": ["text"]}}, "response_format.type", "text, json_object or json_schema"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "not known"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "expected an object"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema",
     "expected an object"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}},
     "response_format.json_schema.strict", "true or false"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}},
     "response_format.json_schema.x", "not known"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "text"}}}}, "response_format",
     "schema: #: no answer can be held to this: Invalid type: text"),
    ({"response_format": {"type": "json_object"}, "tools": TOOLS}, "response_format", "calls no tools"),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "expected none, auto, required or a function"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function", "expected an object"),
    ({"tools": {}}, "tools", "expected a list"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict",
     "true or false"),
    ({"functions": []}, "functions", "old form"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
    ({"n": 2}, "n", "give 1"),
    ({"n": True}, "n", "give 1"),
    ({"wish": 1}, "wish", "not known"),
    ({"temperature": "1"}, "temperature", "from 0 to 100"),
    ({"temperature": -1}, "temperature", "from 0 to 100"),
    ({"temperature": True}, "temperature", "from 0 to 100"),
    ({"temperature": 10**400}, "temperature", "from 0 to 100"),
    ({"top_p": 1.5}, "top_p", "from 0 to 1"),
    ({"max_tokens": 0}, "max_tokens", "from 1"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens", "from 1"),
    ({"seed": -1}, "seed", "from 0"),
    ({"stop": [""]}, "stop", "none of them empty"),
    ({"stop": ["x"] * 17}, "stop", "up to 16"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"1": 200}}, "logit_bias.1", "from -100"),
    ({"logit_bias": {"1": -(10**400)}}, "logit_bias.1", "from -100"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"logprobs": 2}, "logprobs", "true or false"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "streamed"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not known"),
    ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages", "no variable"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param", "message"), FIELDS, ids=[p for _, p, _ in FIELDS])
def test_a_field_that_is_not_understood_is_named(url: str, more: dict[str, Any], param: str, message: str) -> None:
    refused(post(url, CHAT | more), 400, message, param)


def test_fields_that_change_nothing_are_ignored(url: str) -> None:
    harmless = {"user": "x", "store": True, "metadata": {}, "n": 1, "response_format": {"type": "text"}, "stop": None}
    assert post(url, CHAT | harmless | {"parallel_tool_calls": True, "tool_choice": "auto"})[0] == 200


def test_what_the_session_refuses_is_an_error_of_the_request(url: str) -> None:
    given = post(url, {"messages": [{"role": "user", "content": "x" * 5000}], "stream": True})
    refused(given, 400, "the prompt has 5018 tokens, and the context 4096")
    assert given[2]["error"]["code"] == "context_length_exceeded"
    refused(post(url, {"prompt": [999]}, "/v1/completions"), 400, "token ids from 0 to 256")
    refused(post(url, {"prompt": ""}, "/v1/completions"), 400, "at least one token")
    refused(post(url, {"messages": [{"role": "user", "content": "\ud800"}]}), 400, "half a character")
    refused(post(url, CHAT | {"logit_bias": {"999": 1}}), 400, "token ids from 0 to 256")
    deep = {"chat_template_kwargs": {"note": json.loads("[" * 900 + "]" * 900)}}
    refused(post(url, CHAT | deep), 400, "nested too deep")


@pytest.mark.parametrize("prompt", [None, 1, ["a", "b"], [1, "a"], [True]])
def test_a_prompt_that_is_none(url: str, prompt: Any) -> None:
    refused(post(url, {"prompt": prompt}, "/v1/completions"), 400, "prompt", "prompt")


def test_tools_of_a_model_that_knows_none() -> None:
    with serving(Session(Scripted(lambda text: "", template="{{ messages[0].content }}"))) as (url, _):
        tools = [{"type": "function", "function": {"name": "f"}}]
        refused(post(url, CHAT | {"tools": tools}), 400, "knows no tools", "tools")
        named = {"chat_template_kwargs": {"chat_template": "rag"}}
        for more in (named, named | {"tools": tools}):
            refused(post(url, CHAT | more), 400, "chat_template: expected one of default, found rag")
    session = Session(Scripted(lambda text: ""))
    session.metadata = {}
    with serving(session) as (url, _):
        for more in ({}, {"tools": tools}):
            refused(post(url, CHAT | more), 400, "the artifact has no chat template")
    with serving(Session(Scripted(lambda text: "", template="{% for i in range(10**9) %}{% endfor %}"))) as (url, _):
        refused(post(url, CHAT), 400, "chat template: ")


def test_paths_methods_and_models(url: str) -> None:
    refused(answered(exchange(url, request("/v1/nothing"))), 404, "GET /v1/nothing")
    given = answered(exchange(url, request("/v1/chat/completions")))
    refused(given, 405, "Method Not Allowed")
    assert given[1]["allow"] == "POST"
    refused(post(url, CHAT | {"model": "gpt-9"}), 404, "expected tiny", "model")
    refused(answered(exchange(url, request("/v1/models/a/b"))), 404, "tiny only", "model")
    assert answered(exchange(url, request("/v1/models/tiny")))[2]["context_length"] == 4096
    assert answered(exchange(url, request("/health")))[:3:2] == (200, {"status": "ok", "parallel": 1})
    assert exchange(url, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_bodies_have_a_size_and_a_type(url: str) -> None:
    large = json.dumps({"messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
    refused(post(url, large), 413, "100000 bytes")
    chunks = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    head = request("/v1/chat/completions", b"", content_length=None, transfer_encoding="chunked")
    refused(answered(exchange(url, head + chunks)), 413, "100000 bytes")
    refused(post(url, CHAT, content_type="text/plain"), 415, "expected application/json")


def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BODY_SECONDS", 0.3)
    with serving(Session(Scripted(lambda text: "yes"))) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as s:
            s.sendall(request("/v1/completions", b"", content_length="100"))
            refused(answered(b"".join(iter(lambda: s.recv(65536), b""))), 408, "did not come within 0.3 s")
        with socket.create_connection((host, int(port)), timeout=30) as s:
            s.sendall(request("/v1/completions", b"{", content_length="100"))
        assert post(url, CHAT)[0] == 200


# Who may ask


def test_a_key_is_asked_for() -> None:
    with serving(Session(Scripted(lambda text: "yes")), api_key="s3cret") as (url, _):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
            refused(post(url, CHAT, **headers), 401, "the API key is")
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            refused(answered(exchange(url, request(path))), 401, "missing")
        assert post(url, CHAT, authorization="Bearer s3cret", host="example.org")[0] == 200
        assert answered(exchange(url, request("/health")))[0] == 200


def test_an_address_for_others_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "example.org"):  # noqa: S104 - it is what is refused
        with pytest.raises(InputError, match=f"--host {host}: .* needs --api-key"):
            Settings("m", host=host).check()
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        Settings("m", host=host).check()
    Settings("m", host="0.0.0.0", api_key="x").check()  # noqa: S104


def test_a_page_of_another_name_is_no_visitor_of_this_machine(url: str) -> None:
    refused(post(url, CHAT, host="evil.example:80"), 403, "host: expected 127.0.0.1")
    for host in ("localhost:1234", "127.0.0.1:80", "[::1]:80"):
        assert post(url, CHAT, host=host)[0] == 200


def test_other_origins_are_let_in_where_they_are_named(url: str) -> None:
    asks = {"origin": "https://a.example", "access_control_request_method": "POST"}
    path = "/v1/chat/completions"
    assert "access-control-allow-origin" not in post(url, CHAT, origin="https://a.example")[1]
    refused(answered(exchange(url, request(path, method="OPTIONS", **asks))), 405, "Method Not Allowed")
    with serving(Session(Scripted(lambda text: "yes")), cors=("https://a.example",), api_key="k") as (open_url, _):
        for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
            preflight = answered(exchange(open_url, request(path, method="OPTIONS", **asks | {"origin": origin})))
            assert preflight[1].get("access-control-allow-origin") == allowed
            given = post(open_url, CHAT, origin=origin)
            refused(given, 401, "missing")
            assert given[1].get("access-control-allow-origin") == allowed, "a page can read why it was refused"
