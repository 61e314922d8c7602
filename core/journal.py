"""A journal whose lines survive a kill and tell damage.

A line is `CHECKSUM JSON`. The checksum is over the JSON and over the checksum of the line before, so that a line
that was changed, repeated, left out or moved is noticed. What follows the last newline was cut short by a kill.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

START = b"sampan journal 1"  # in the place of a checksum before the first line


@dataclass(slots=True)
class Journal:
    """An open journal: its descriptor (for appending), the checksum of its last line, the bytes of its lines."""

    fd: int
    last: bytes = START
    size: int = 0

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line and make it durable, or raise OSError and leave the journal as it was."""
        text = json.dumps(entry).encode()
        mark = _checksum(self.last, text)
        line = mark + b" " + text + b"\n"
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self.fd, rest) :]
            os.fdatasync(self.fd)
        except OSError:
            with contextlib.suppress(OSError):  # half a line, which the next one would turn into damage
                os.ftruncate(self.fd, self.size)
            raise
        self.last, self.size = mark, self.size + len(line)

    def read(self) -> list[dict[str, Any]] | None:
        """Every entry, or None where anything is odd; what a kill cut short is cut off."""
        entries = []
        last, size = START, 0
        with open(self.fd, "rb", closefd=False) as f:
            f.seek(0)
            for line in f:
                if not line.endswith(b"\n"):
                    break
                mark, _, text = line[:-1].partition(b" ")
                if mark != _checksum(last, text):
                    return None
                entries.append(json.loads(text))
                last, size = mark, size + len(line)
        os.ftruncate(self.fd, size)
        self.last, self.size = last, size
        return entries

    def clear(self) -> None:
        """Begin again."""
        os.ftruncate(self.fd, 0)
        self.last, self.size = START, 0


def _checksum(before: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(before + b" " + text, digest_size=16).hexdigest().encode()
