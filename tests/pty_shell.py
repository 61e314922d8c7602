"""A command in a real pseudo-terminal, and somebody who types into it."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

SAMPAN = "from sampan.cli import main; main()"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[=>]|\x1b\][^\x07]*\x07")
EDITED, EDITED_END = "\x1b[?2004h", "\x1b[?2004l"  # while prompt_toolkit waits for a line: pastes are marked
WAIT = 60.0


class Terminal:
    """`seen` is all that was written to it. It answers where its cursor is, as terminals do."""

    def __init__(
        self, *arguments: str, columns: int = 80, code: str = SAMPAN, prompt: str = "", **environment: str
    ) -> None:
        self._master, slave = os.openpty()
        self.resize(columns)
        ours = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), env=ours | {"TERM": "xterm"} | environment,
        )  # fmt: skip
        os.close(slave)
        self.prompt = prompt or EDITED
        self.seen, self._from = "", 0
        self._raw = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """Wait for a text behind the last one that was waited for; what came up to its end, controls left out."""
        end = time.monotonic() + WAIT
        while (at := self.seen.find(text, self._from)) < 0:
            assert time.monotonic() < end and self._read(), f"no {text!r} in {self.seen[self._from :]!r}"
        shown, self._from = self.seen[self._from : at], at + len(text)
        return CONTROL.sub("", shown).replace("\r", "")

    def _read(self) -> bool:
        if not select.select([self._master], [], [], WAIT)[0]:
            return False
        try:
            raw = os.read(self._master, 1 << 16)
        except OSError:  # the program has ended
            return False
        if b"\x1b[6n" in raw:
            os.write(self._master, b"\x1b[1;1R")
        self._raw += raw
        self.seen = self._raw.decode(errors="ignore")
        return bool(raw)

    def say(self, text: str) -> str:
        """Type a line at the prompt, wait for the next prompt; what was shown between them, without the echo."""
        return self.press(text + "\r")

    def press(self, keys: str) -> str:
        """The same for keys that end the line in another way."""
        self.type(keys)
        if self.prompt == EDITED:
            self.until(EDITED_END)
        return self.until(self.prompt)

    def end(self) -> int:
        """Type Ctrl-D, read to the end; the exit code."""
        self.type("\x04")
        while self._read():
            pass
        return self.process.wait(WAIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._master)
