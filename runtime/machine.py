"""The machine that sampan runs on, as the files below a root tell: /proc, /sys and /dev, or a tree that a test wrote.

They are read as text of strangers: whatever they hold and whichever are missing, nothing here raises.
"""

from __future__ import annotations

import os
import platform
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT = 4 << 20  # bytes of a file; /proc/cpuinfo of 512 cores has less than 1 MB
MOST_CORES = 4096  # more than any list of cores means
UNLIMITED = 1 << 60  # cgroup v1 writes 2⁶³ - 4096 bytes where there is no limit


@dataclass(frozen=True, slots=True)
class Machine:
    """`root` holds its files; `architecture` is its processor as `uname -m` says it, such as x86_64 and aarch64.

    `allowed` are the numbers of the cores that this process may use.
    """

    root: Path
    architecture: str
    allowed: tuple[int, ...]

    def text(self, path: str) -> str:
        """A small file by its absolute name on that machine; empty where it cannot be read. It may hold anything."""
        return _text(self.root, path)

    def number(self, path: str) -> int | None:
        """The whole number that a file begins with."""
        return _number(self.text(path))

    def link(self, path: str) -> str:
        """The last name of what a link leads to, such as that of a driver; empty where it is none."""
        try:
            return _real(self.root, path).readlink().name
        except (OSError, ValueError):
            return ""

    def paths(self, pattern: str) -> list[str]:
        """The absolute names on that machine that a pattern such as `/dev/fastrpc*` finds, sorted."""
        try:
            return sorted(f"/{p.relative_to(self.root)}" for p in self.root.glob(pattern.lstrip("/")))
        except (OSError, ValueError):
            return []


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; None where nothing tells. `limit` is the control group's, `available` what a program can get now."""

    total: int | None
    available: int | None
    limit: int | None
    swap: int | None


def look(root: Path = Path("/"), architecture: str | None = None) -> Machine:
    """This machine, or the one whose files lie below `root`."""
    allowed = _allowed(root)
    if root == Path("/"):
        try:
            allowed = sorted(os.sched_getaffinity(0))
        except (AttributeError, OSError):  # no Linux
            allowed = allowed or list(range(os.cpu_count() or 1))
    return Machine(root, architecture or platform.machine(), tuple(allowed) or (0,))


def cores_of(text: str) -> list[int]:
    """`0-3,8` → 0, 1, 2, 3, 8, as the kernel writes lists; what is no such list counts for nothing."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if m := re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip()):
            found.update(range(int(m[1]), min(int(m[2] or m[1]), MOST_CORES) + 1))
    return sorted(found)


def memory(machine: Machine) -> Memory:
    """What /proc/meminfo and the control groups tell (Documentation/admin-guide/cgroup-v2.rst: memory.max)."""
    lines = machine.text("/proc/meminfo")
    total, available, swap = (_kib(lines, name) for name in ("MemTotal", "MemAvailable", "SwapTotal"))
    limit = None
    for folder in _groups(machine, "memory"):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            bound = machine.number(f"{folder}/{most}")
            if bound is None or bound >= min(UNLIMITED, total or UNLIMITED):
                continue
            limit = bound if limit is None else min(limit, bound)
            taken = max(0, (machine.number(f"{folder}/{used}") or 0) - _dropped(machine, folder))
            left = max(0, bound - taken)
            available = left if available is None else min(available, left)
    return Memory(total, available, limit, swap)


def _dropped(machine: Machine, folder: str) -> int:
    """Bytes of files in the page cache that count as used and that the kernel drops first: memory.stat."""
    found = re.search(r"^(?:total_)?inactive_file (\d{1,19})$", machine.text(f"{folder}/memory.stat"), re.MULTILINE)
    return int(found[1]) if found else 0


def quota(machine: Machine) -> float | None:
    """How many cores' time the control groups allow; None without a limit (cgroup-v2.rst: cpu.max)."""
    found = []
    for folder in _groups(machine, "cpu"):
        new = machine.text(f"{folder}/cpu.max").split()
        old = [machine.text(f"{folder}/cpu.cfs_{n}_us").strip() for n in ("quota", "period")]
        for limit, period in (new, old) if len(new) == 2 else (old,):
            if (time := _number(limit)) and (each := _number(period)):
                found.append(time / each)
    return min(found, default=None)


def _groups(machine: Machine, controller: str) -> Iterator[str]:
    """The folders of the control group of this process and of those above it, of both versions."""
    yield "/sys/fs/cgroup"
    for line in machine.text("/proc/self/cgroup").splitlines():
        _, found, path = ([*line.split(":", 2), "", ""])[:3]
        if found and controller not in found.split(","):
            continue
        base = f"/sys/fs/cgroup/{controller}" if found else "/sys/fs/cgroup"
        parts = [p for p in path.split("/") if p not in ("", ".", "..")]
        for n in range(0 if found else 1, min(len(parts), 64) + 1):
            yield "/".join([base, *parts[:n]])


def _allowed(root: Path) -> list[int]:
    status, online = _text(root, "/proc/self/status"), cores_of(_text(root, "/sys/devices/system/cpu/online"))
    listed = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
    allowed = cores_of(listed[1]) if listed else online
    both = [n for n in allowed if n in online] if online else allowed
    named = re.findall(r"^processor\s*:\s*(\d{1,4})\s*$", _text(root, "/proc/cpuinfo"), re.MULTILINE)
    return both or sorted(set(map(int, named)))


def _kib(lines: str, name: str) -> int | None:
    m = re.search(rf"^{name}:\s*(\d{{1,15}}) kB", lines, re.MULTILINE)
    return int(m[1]) << 10 if m else None


def _number(text: str) -> int | None:
    m = re.match(r"\s*(\d{1,19})(?!\d)", text)
    return int(m[1]) if m else None


def _text(root: Path, path: str) -> str:
    try:
        with os.fdopen(os.open(_real(root, path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            return f.read(LIMIT).decode(errors="replace") if stat.S_ISREG(os.fstat(f.fileno()).st_mode) else ""
    except (OSError, ValueError):
        return ""


def _real(root: Path, path: str) -> Path:
    return root / path.lstrip("/")
