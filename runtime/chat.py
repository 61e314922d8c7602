"""The text of a conversation, by a model's own jinja template. A process with limits runs it: it is a stranger's."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from sampan.child import ended, start
from sampan.errors import InputError, brief
from sampan.files import LIMITS
from sampan.jinja import SECONDS

from .tool_types import ordered, typescript

LARGEST = LIMITS["chat_template.jinja"]  # characters
PATIENCE = 20.0  # seconds for an answer, where the process gets no processor to compute on
PLAIN = "a plain prompt (--raw) needs no template"
RESERVED = ("messages", "tools")
ARGUMENTS = (*RESERVED, "self", "options", "sanitize_control_tokens")  # of Session.chat: no variables of a template


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation, as transformers' apply_chat_template renders it.

    `variables` are what else the template can ask for: bos_token and its like, enable_thinking, documents. Raises
    InputError with the template's own message, or where it takes too much time or memory.
    """
    if len(template) > LARGEST:
        raise InputError(f"chat template: it has more than the {LARGEST} characters that are allowed; {PLAIN}")
    if not messages:
        raise InputError("chat template: a conversation needs at least one message, and there is none")
    for what, values in (("message", messages), ("tool", tools or ())):
        if (odd := next((v for v in values if not isinstance(v, Mapping)), None)) is not None:
            raise InputError(f"chat template: a {what} must be an object with keys and values, not {brief(odd)}")
    if taken := [name for name in RESERVED if name in (variables or {})]:
        raise InputError(f"chat template: {taken[0]} cannot be a variable, since it is part of the conversation")
    tools, own = with_types(template, tools)
    more = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt} | own
    more |= variables or {}
    try:
        request = json.dumps({"template": template, "messages": messages, "variables": more}, default=_plain)
    except (TypeError, ValueError, RecursionError) as e:
        raise InputError(f"chat template: the conversation cannot be written as JSON: {brief(str(e))}") from None
    answer = _renderer.ask(request)
    if "refused" in answer:
        raise InputError(f"chat template: {brief(answer['refused'], 300)}")
    if "limit" in answer:
        raise InputError(f"chat template: {answer['limit']}; {PLAIN}")
    return answer["text"]


def with_types(
    template: str, tools: Sequence[Mapping[str, Any]] | None
) -> tuple[Sequence[Mapping[str, Any]] | None, dict[str, str]]:
    """Tools and the variable with their types, as Kimi K2.5's own code hands them to a template that asks for it."""
    if not tools or "tools_ts_str" not in template:
        return tools, {}
    tools = ordered(tools)
    try:
        return tools, {"tools_ts_str": typescript(tools)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # its template has another form for these
        return tools, {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def begin() -> None:
    """Start the process that renders, so that it is there when a model has been loaded."""
    _renderer.start()


class Renderer:
    """The process that renders, started when it is first needed and again after it ended; one request at a time.

    `code` calls jinja.serve, which bounds each answer to `seconds` of computing.
    """

    def __init__(self, code: str, seconds: float) -> None:
        self._code, self._seconds = code, seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._owner = 0  # the process that started the child: a fork has to start its own

    def start(self) -> None:
        """Start the process, if it does not run."""
        with self._lock:
            self._alive()

    def ask(self, request: str) -> dict[str, str]:
        """The answer to a request of one line."""
        with self._lock:
            child = self._alive()
            assert child.stdin is not None  # noqa: S101 - both are pipes
            assert child.stdout is not None  # noqa: S101
            timer = threading.Timer(PATIENCE, child.kill)
            timer.start()
            try:
                child.stdin.write(request + "\n")
                child.stdin.flush()
                if line := child.stdout.readline():
                    answer: dict[str, str] = json.loads(line)
                    return answer
            except BrokenPipeError:
                pass
            except BaseException:  # an interrupt: the answer would be taken for the next one's
                child.kill()
                raise
            finally:
                timer.cancel()
            code = child.wait()
            if code == -signal.SIGPROF:
                return {"limit": f"it takes more than {self._seconds:g} s of computing"}
            if code == -signal.SIGKILL:  # by the timer, or by the system where memory is short
                return {"limit": f"it had no answer within {PATIENCE:g} s; is this machine busy with other work?"}
            return {"limit": f"the process that renders it {ended(code, '')}"}

    def _alive(self) -> subprocess.Popen[str]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self.close()
            self._child = start(self._code, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._owner = os.getpid()
            atexit.register(self.close)
        return self._child

    def close(self) -> None:
        """End the process, if it is ours."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()  # it holds nothing, and may still be on its way to its first request
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()
        child.wait()


_renderer = Renderer("from sampan.jinja import main; main()", SECONDS)
