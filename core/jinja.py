"""Chat templates are programs of strangers: this is the process that renders them, with limits that the kernel keeps.

Requests come as JSON lines on standard input, and an answer line goes to standard output for each. What a template may
do is what transformers lets it do (utils/chat_template_utils.py), so the same text comes out.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 1.0  # of computing for one text; published templates take milliseconds
MEMORY = 400_000_000  # bytes of address space beside what the process has when it starts
LONGEST = 10_000_000  # characters of one text
REASONING = ("reasoning_content", "thinking", "reasoning")  # the first of them is the one that templates read


def render(template: str, messages: list[Any], variables: Mapping[str, Any]) -> str:
    """The text of a conversation: keys without a value are left out of messages, reasoning goes by all its names."""
    plain = [{k: v for k, v in m.items() if v is not None} for m in messages]
    for message in plain:
        if (reasoning := next((message[k] for k in REASONING if k in message), None)) is not None:
            message.setdefault("thinking", reasoning)
            message["reasoning_content"] = reasoning
    text: str = _compiled(template).render(messages=plain, **variables)
    return text


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def _environment() -> Any:
    """Names, filters and tags of transformers' renderer."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks what an assistant said, for training; the text is that of a block with its scope."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own interface

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Any) -> Any:
            return caller()

    class Dict:
        """`dict` without the type behind it."""

        def __call__(self, *pairs: Any, **more: Any) -> dict[Any, Any]:
            return dict(*pairs, **more)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    class Names(Namespace):  # type: ignore[misc, unused-ignore]
        """`namespace` without names of Python's own."""

        def __init__(*arguments: Any, **values: Any) -> None:
            self, rest = arguments[0], arguments[1:]
            all_values = dict(*rest, **values)
            for name in all_values:
                _refuse_private(name)
            Namespace.__init__(self, all_values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Names,
    }
    return environment


def answer(line: str, write: Callable[[dict[str, Any]], str], seconds: float) -> dict[str, str]:
    """`{"text": …}` of a request, `{"refused": why}`, or `{"limit": which}`.

    Computing for too long ends the process: SIGPROF, which nothing in it can hold off.
    """
    from jinja2 import TemplateError

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        text = write(json.loads(line))
        if len(text) > LONGEST:
            return {"limit": f"its text has {len(text)} characters, more than the {LONGEST} that are allowed"}
        return {"text": text}
    except MemoryError:
        return {"limit": f"it takes more than {MEMORY // 10**6} MB of memory"}
    except RecursionError:
        return {"limit": "it is nested or calls itself too deeply"}
    except TemplateError as e:
        return {"refused": str(e) or type(e).__name__}
    except Exception as e:  # whatever a program can do wrong
        return {"refused": f"it fails on this conversation: {type(e).__name__}: {e}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def serve(write: Callable[[dict[str, Any]], str], seconds: float = SECONDS) -> None:
    """Answer until standard input ends, within limits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(answer(line, write, seconds)), flush=True)


def main() -> None:
    """Render conversations."""
    _environment()  # all imports
    serve(lambda asked: render(asked["template"], asked["messages"], asked["variables"]))
