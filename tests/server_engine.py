"""An engine that says what a script tells it, and a server over it on loopback."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.chat_template import KEY
from sampan.runtime import Session
from sampan.runtime.server import app
from sampan.runtime.server.endpoint import Service
from sampan.runtime.server.settings import Settings

END, VOCAB = 256, 257  # tokens are bytes
TEMPLATE = (
    "{# by which parsers know a model: <tool_call> arguments </think> #}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]{% if think %}<think>{% endif %}"
)


class Scripted:
    """Implements `Engine`: `say` maps the text in front of an answer to that answer."""

    vocab, longest, kv, batch = VOCAB, 65536, "f32", 4096

    def __init__(self, say: Callable[[str], str], *, seconds: float = 0.0, template: str = TEMPLATE) -> None:
        self._say, self._seconds, self._template = say, seconds, template
        self.context = 4096
        self._cache: list[int] = []
        self._answers: dict[bytes, bytes] = {}
        self.evaluated = 0

    def tokenize(self, text: str, *, special: bool, around: bool) -> list[int]:
        return list(text.encode())

    def piece(self, token: int, *, control: bool = False) -> bytes:
        return b"" if token == END else bytes([token])

    def added(self) -> Mapping[str, bool]:
        return {}

    def is_end(self, token: int) -> bool:
        return token == END

    def keep(self, n: int) -> int:
        self._cache = self._cache[:n]
        return n

    def evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        time.sleep(self._seconds)
        self.evaluated += 1
        self._cache += tokens
        logits = np.zeros((wanted, VOCAB), np.float32)
        if wanted:
            logits[-1, self._next()] = 50
        return logits

    def _next(self) -> int:
        """The byte behind what was said already of the answer to this prompt, of several that take turns, too."""
        text = bytes(self._cache)
        begun = ((p, a) for p, a in self._answers.items() if text.startswith(p) and text != p)
        found = max(((p, a) for p, a in begun if a.startswith(text[len(p) :])), default=None)
        if found is None:
            found = text, self._say(text.decode(errors="replace")).encode()
            self._answers[text] = found[1]
            if len(self._answers) > 16:  # of a server under load
                del self._answers[next(iter(self._answers))]
        done = len(text) - len(found[0])
        return found[1][done] if done < len(found[1]) else END

    def state_bytes(self) -> int:
        return self.state_limit(len(self._cache))

    def state_limit(self, tokens: int) -> int:
        return 2 * tokens

    def copy_state(self, out: NDArray[np.uint8]) -> None:
        out.view(np.uint16)[:] = self._cache

    def restore(self, tokens: int, state: NDArray[np.uint8]) -> None:
        self._cache = state.view(np.uint16).tolist()

    def take_experts(self) -> dict[int, NDArray[np.int32]]:
        return {}

    def metadata(self) -> Mapping[str, str]:
        return {KEY: self._template}

    def close(self) -> None: ...


@contextlib.contextmanager
def serving(session: Session, **settings: Any) -> Iterator[tuple[str, Service]]:
    """A server's address and what answers behind it."""
    chosen = Settings(**{"name": "tiny", "port": 0} | settings)
    sock = app.bind(chosen)
    service = app.service(session, chosen)
    sock.listen()
    server = app.server(service)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", service
    finally:
        service.worker.stop()
        server.should_exit = server.force_exit = True
        thread.join()
        service.close()


def call(name: str, **arguments: Any) -> str:
    """A call of a tool as Hermes models write it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
