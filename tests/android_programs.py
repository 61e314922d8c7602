"""The demo app's engine as a process: its programs for arm64 under qemu, or one for this machine.

`make android-demo` builds the programs. SAMPAN_ENGINE=FILE takes a program of this machine in their place, such as one
with sanitizers.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

BUILT = Path(__file__).parents[1] / "build" / "android"
PLAIN, FAST = "libsampan_engine.so", "libsampan_engine_i8mm.so"
NATIVE = os.environ.get("SAMPAN_ENGINE")
MAX = ["qemu-aarch64-static", "-cpu", "max,sme=off"]
OLD = ["qemu-aarch64-static", "-cpu", "neoverse-n1"]  # it has dotprod, and lacks i8mm
RUNS = {"i8mm": [*MAX, FAST], "pages of 16 KB": [*MAX, "-p", "16384", FAST], "without i8mm": [*OLD, PLAIN]}
LAST = ("loaded", "done", "ids", "stats", "error")  # events that end a request


def command(run: str) -> list[str]:
    """How to start the engine; the test is skipped where it is not built, except in CI."""
    if NATIVE:
        return [NATIVE]
    *before, name = RUNS[run]
    if not (BUILT / name).exists():
        assert not os.environ.get("CI"), f"{BUILT / name} is not built"
        pytest.skip("make android-demo builds the engine")
    return [*before, str(BUILT / name)]


class Engine:
    """An engine that is ready. Requests get ids of their own."""

    def __init__(
        self, run: str = "i8mm", *before: str, program: str | None = None, stderr: int = subprocess.DEVNULL
    ) -> None:
        argv = [*before, *([program] if program else command(run))]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        self.id = 0
        self.ready = self.event()

    def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.endswith(b"\n"), f"the engine ended with {self.process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def start(self, op: str, **more: Any) -> int:
        self.id += 1
        self.send(json.dumps({"op": op, "id": self.id} | more).encode() + b"\n")
        return self.id

    def events(self, wanted: int) -> Iterator[dict[str, Any]]:
        """Those of a request, to its last one."""
        while True:
            event = self.event()
            if event["id"] == wanted:
                yield event
                if event["event"] in LAST:
                    return

    def ask(self, op: str, **more: Any) -> dict[str, Any]:
        """The last event of a request, with the text of all before it."""
        *before, last = self.events(self.start(op, **more))
        return {"text": "".join(e["text"] for e in before if e["event"] == "text")} | last

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def user(*texts: str) -> list[dict[str, str]]:
    """A conversation, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
