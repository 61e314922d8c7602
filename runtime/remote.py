"""The app's engine on a phone, driven over `adb shell`: one JSON object a line in both directions."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from shlex import quote
from typing import Any

from sampan.child import ended
from sampan.errors import InputError, brief, wrong
from sampan.files import parse_json

from .adb import Device, release

PROTOCOL = 1
LINE = 1 << 20  # bytes of a request or an event at most


# Builds of the engine in the app, best first, and what the kernel calls the features without which each gets SIGILL.
BUILDS = {
    "libsampan_engine_i8mm.so": {"asimd", "asimddp", "i8mm"},
    "libsampan_engine.so": {"asimd", "asimddp"},
}


def program(device: Device, folder: str) -> str:
    """The best engine among the app's programs that every core can run: a thread may move to any of them."""
    cores = re.findall(r"^Features[\t ]*:(.*)$", device.ask("cat /proc/cpuinfo"), re.MULTILINE)
    features = set.intersection(*(set(core.split()) for core in cores)) if cores else set()
    for name, wanted in BUILDS.items():
        if wanted <= features:
            return f"{folder}/{name}"
    missing = ", ".join(sorted(wanted - features))
    raise InputError(f"{device.serial}: the app has no engine for this processor, which lacks {missing}")


@dataclass(slots=True)
class Engine:
    """A running engine. `composed`: its model wants text in Unicode NFC."""

    device: Device
    process: subprocess.Popen[bytes]
    log: Any
    ids: int = field(default=0)
    composed: bool = field(default=False)

    def ask(self, op: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Send a request; its events as they come, up to and with the last one. InputError for an error event."""
        self.ids += 1
        line = json.dumps({"op": op, "id": self.ids, **fields}, ensure_ascii=False).encode() + b"\n"
        if len(line) > LINE:
            raise wrong(op, f"a request of at most {LINE} bytes", len(line), "shorten the prompt")
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.gone() from None
        while True:
            event = self.event()
            if event.get("id") != self.ids:
                continue
            if event["event"] == "error":
                message = f"{brief(event.get('code'))}: {brief(event.get('message'), 300)}"
                raise InputError(f"{self.device.serial}: the engine: {message}")
            yield event
            if event["event"] in ("loaded", "done"):
                return

    def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        line = self.process.stdout.readline(LINE + 1)
        if not line:
            raise self.gone()
        event = parse_json(line, f"{self.device.serial}: the engine") if len(line) <= LINE else None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise wrong(f"{self.device.serial}: the engine", "a line of JSON with an event", brief(repr(line)))
        return event

    def gone(self) -> InputError:
        code = self.process.wait()
        self.log.seek(0)
        return InputError(f"{self.device.serial}: the engine {ended(code, self.log.read().decode(errors='replace'))}")


@contextmanager
def engine(device: Device, path: str) -> Iterator[Engine]:
    """Start the engine at `path` on the phone; it ends with the block, at the end of its input."""
    with tempfile.TemporaryFile() as log, device.start(f"exec {quote(path)}", log) as process:
        try:
            running = Engine(device, process, log)
            ready = running.event()
            if ready.get("event") != "ready" or ready.get("protocol") != PROTOCOL:
                raise wrong(
                    f"{device.serial}: the engine", f"protocol {PROTOCOL}", brief(ready), "update the app or sampan"
                )
            yield running
        finally:
            process.kill()  # adb; the engine reads the end of its input
            release(process)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens and milliseconds of a prompt and of its answer, as the engine measured them."""

    prompt: int
    prefill_ms: float
    tokens: int
    decode_ms: float
    reason: str

    @property
    def prefill(self) -> float | None:
        """Tokens a second; None where nothing was measured."""
        return 1000 * self.prompt / self.prefill_ms if self.prefill_ms else None

    @property
    def decode(self) -> float | None:
        return 1000 * self.tokens / self.decode_ms if self.decode_ms else None


def load(running: Engine, model: str, context: int, threads: int) -> None:
    """Load a model by its path on the phone."""
    for event in running.ask("load", path=model, context=context, threads=threads):
        running.composed = event.get("nfc") is True


def chat(running: Engine, prompt: str, max_tokens: int, text: Callable[[str], None]) -> Speed:
    """Answer a prompt greedily; `text` gets the answer piece by piece."""
    text_sent = unicodedata.normalize("NFC", prompt) if running.composed else prompt
    messages = [{"role": "user", "content": text_sent}]
    speed: Speed | None = None
    for event in running.ask("chat", messages=messages, max_tokens=max_tokens, temperature=0, seed=0, variables={}):
        if event["event"] == "text":
            text(str(event.get("text", "")))
        elif event["event"] == "done":
            speed = Speed(
                int(_number(event, "prompt_tokens") - _number(event, "cached")), _number(event, "prefill_ms"),
                int(_number(event, "tokens")), _number(event, "decode_ms"), str(event.get("reason")),
            )  # fmt: skip
    assert speed is not None  # noqa: S101 - `ask` ends with done
    return speed


def _number(event: dict[str, Any], key: str) -> float:
    value = event.get(key)
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise wrong(f"the engine: done: {key}", "a number", brief(value))
    return float(value)
