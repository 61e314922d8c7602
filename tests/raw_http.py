"""Requests to a server as the bytes that travel, and what comes back."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"messages": HELLO}


def exchange(url: str, data: bytes) -> bytes:
    """All that a server sends for some bytes, until it closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as s:
        s.sendall(data)
        return b"".join(iter(lambda: s.recv(65536), b""))


def request(path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> bytes:
    """One request as it travels; a None among the headers leaves it out."""
    named: dict[str, Any] = {"host": "127.0.0.1", "connection": "close"}
    if body is not None:
        named |= {"content-type": "application/json", "content-length": len(body)}
    named |= {k.replace("_", "-"): v for k, v in headers.items()}
    method = method or ("GET" if body is None else "POST")
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in named.items() if v is not None), "", ""]
    return "\r\n".join(lines).encode() + (body or b"")


def answered(raw: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of a response."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if headers["content-type"] == "application/json" else body


def post(url: str, value: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, str], Any]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return answered(exchange(url, request(path, body, **headers)))


def refused(given: tuple[int, dict[str, str], Any], status: int, message: str, param: str | None = None) -> None:
    """An error as OpenAI has it, in one line."""
    assert given[0] == status, given
    assert given[2].keys() == {"error"} and given[2]["error"].keys() == {"message", "type", "param", "code"}
    error = given[2]["error"]
    assert message in error["message"] and "\n" not in error["message"] and error["param"] == param, error
    assert error["type"]


def wait(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask_aside(url: str, into: list[Any], value: Any = CHAT) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.append(post(url, value)))
    thread.start()
    return thread
