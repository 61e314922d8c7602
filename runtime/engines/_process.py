"""What a Session does to its whole process, and nothing else does; `EngineOptions.process_wide` switches it off.

llama.cpp's log is kept instead of printed: its errors are the reasons of ours, and all of it goes to the logger
"sampan.llama" at level DEBUG.

Weights of ONNX Runtime move to huge pages, on Linux. Every token walks through all weights. With pages of 4 KB a
processor spends about a tenth of that time on looking up addresses (docs/benchmarks.md), and an engine's allocations
are out of reach, so its memory is moved behind the first tokens: that keeps one core busy for a while.

A model's file that is cut while it is mapped does not end the process, on Linux and Android: what is missing of it is
read as zeros, and the Session tells it (runtime/opened.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

HUGE = 2 << 20  # bytes of a huge page where the small one has 4 KB
MADV_COLLAPSE = 25  # Linux 6.1, include/uapi/asm-generic/mman-common.h; older kernels refuse it
LOG = logging.getLogger("sampan.llama")
ERROR = 4  # enum ggml_log_level
MAPS = Path("/proc/self/maps")  # Documentation/filesystems/proc.rst
MAP_FIXED = 0x10  # include/uapi/asm-generic/mman-common.h
OTHERS = 1000  # signals in a row that no file of ours explains, before they end the process; threads send some at once
Maps = set[tuple[int, int]]

errors: list[str] = []  # of llama.cpp, since somebody cleared it
_heard: Any = None  # kept alive: llama.cpp calls it for the life of the process
_guarded: set[str] = set()
_filler: Any = None  # kept alive: the system calls it for the life of the process


def hear(lib: Any) -> None:
    """Keep llama.cpp's log; `errors` gets its errors."""
    global _heard
    if _heard is None:

        @lib.llama_log_callback  # type: ignore[untyped-decorator]
        def keep(level: int, text: bytes, _: Any) -> None:
            line = text.decode(errors="replace").strip()
            if level == ERROR:
                errors.append(line)
            if line.strip("."):  # dots are its progress
                LOG.debug("%s", line)

        lib.llama_log_set(keep, ctypes.c_void_p(0))
        _heard = keep


def guard(files: Iterable[Path]) -> None:
    """What is cut off from these files is read as zeros where they are mapped, from now on.

    Who reads behind the end of a mapped file gets SIGBUS. Python's own handlers run when the instruction is over, which
    it never is, so this one is C's. Any thread may get it, in the middle of a computation that holds no lock.
    """
    global _filler
    _guarded.update(os.path.realpath(f) for f in files)
    if _filler is not None or not MAPS.exists():
        return
    libc, others = ctypes.CDLL(None), 0
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p

    @ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
    def fill(number: int) -> None:
        nonlocal others
        others += 1
        with contextlib.suppress(OSError):
            if _fill(libc):
                others = 0
        if others > OTHERS:
            libc.signal(number, before)  # it comes again

    _filler = fill
    before = libc.signal(signal.SIGBUS, ctypes.cast(fill, ctypes.c_void_p))


def _fill(libc: Any) -> bool:
    """Put zeros in the place of what is mapped behind the ends of our files; False where nothing is."""
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags, found = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED, False
    for line in _maps():
        where, _, offset, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in _guarded:
            begin, end = (int(x, 16) for x in where.split("-"))
            left = max(Path(name[0]).stat().st_size - int(offset, 16), 0)
            if (at := begin + -(-left // mmap.PAGESIZE) * mmap.PAGESIZE) < end:
                libc.mmap(at, end - at, mmap.PROT_READ, flags, -1, 0)
                found = True
    return found


def _maps() -> list[str]:
    """A line for each mapping of this process; names of files are any bytes."""
    return MAPS.read_text(errors="surrogateescape").split("\n")[:-1]


def private() -> Maps:
    """Begin and end of the writable memory without a file that this process has; empty where the system hides it."""
    if sys.platform != "linux" or mmap.PAGESIZE != 4096:
        return set()
    try:
        fields = [line.split() for line in _maps()]
    except OSError:
        return set()
    kept = (f[0].split("-") for f in fields if f[1].startswith("rw") and f[5:] in ([], ["[heap]"]))
    return {(int(begin, 16), int(end, 16)) for begin, end in kept}


class Loaded:
    """What appears in memory inside of a `with` block; `settle` moves it into huge pages, once, beside other work."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._before: Maps = set()
        self._maps: Maps = set()

    def __enter__(self) -> Self:
        self._before = private() if self._wanted else set()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            self._maps = private() - self._before

    def settle(self) -> None:
        """Begin to move."""
        maps, self._maps = sorted(self._maps), set()
        if maps:
            threading.Thread(target=collapse, args=(maps,), name="huge pages", daemon=True).start()


def collapse(maps: list[tuple[int, int]]) -> bool:
    """Move memory into huge pages; contents and addresses stay. False where the system does not know how."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    try:
        for at in _full(maps):
            if madvise(at, HUGE, MADV_COLLAPSE) and ctypes.get_errno() == errno.EINVAL:
                return False
    except OSError:  # Android does not show the pages of a process to itself
        return False
    return True


def _full(maps: list[tuple[int, int]]) -> Iterator[int]:
    """Addresses of huge pages whose small ones are all in use, so that no memory is added.

    /proc/self/pagemap: 8 bytes a page, the highest bit says present (Documentation/admin-guide/mm/pagemap.rst).
    """
    small = HUGE // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb") as f:
        for begin, end in maps:
            first, last = -(-begin // HUGE), end // HUGE
            f.seek(first * small * 8)
            there = np.frombuffer(f.read(max(last - first, 0) * small * 8), np.uint64) >> np.uint64(63)
            for n in np.flatnonzero(there.reshape(-1, small).all(axis=1)):
                yield (first + int(n)) * HUGE
