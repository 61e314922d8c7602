"""The machine that sampan runs on, as the files below a root tell: /proc, /sys and /dev, or a tree that a test wrote.

They are read as text of strangers: whatever they hold and whichever are missing, nothing here raises.
"""

from __future__ import annotations

import os
import platform
import stat
from dataclasses import dataclass
from pathlib import Path

LIMIT = 4 << 20  # bytes of a file; /proc/cpuinfo of 512 cores has less than 1 MB


@dataclass(frozen=True, slots=True)
class Machine:
    """`root` holds its files; `architecture` is its processor as `uname -m` says it, such as x86_64 and aarch64."""

    root: Path
    architecture: str

    def text(self, path: str) -> str:
        """A small file by its absolute name on that machine; empty where it cannot be read. It may hold anything."""
        try:
            with os.fdopen(os.open(self._real(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
                return f.read(LIMIT).decode(errors="replace") if stat.S_ISREG(os.fstat(f.fileno()).st_mode) else ""
        except (OSError, ValueError):
            return ""

    def paths(self, pattern: str) -> list[str]:
        """The absolute names on that machine that a pattern such as `/dev/fastrpc*` finds, sorted."""
        try:
            return sorted(f"/{p.relative_to(self.root)}" for p in self.root.glob(pattern.lstrip("/")))
        except (OSError, ValueError):
            return []

    def _real(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def look(root: Path = Path("/"), architecture: str | None = None) -> Machine:
    """This machine, or the one whose files lie below `root`."""
    return Machine(root, architecture or platform.machine())
