"""Huge pages for weights, on Linux.

Every token walks through all weights. With pages of 4 KB a processor spends about a tenth of that time on looking
up addresses (docs/benchmarks.md), and an engine's allocations are out of reach, so its memory is moved while it
loads: that keeps one core busy.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HUGE = 2 << 20  # bytes of a huge page where the small one has 4 KB
MADV_COLLAPSE = 25  # Linux 6.1, include/uapi/asm-generic/mman-common.h; older kernels refuse it
PAUSE = 0.05  # seconds between two looks at what was loaded

Maps = set[tuple[int, int]]


def private() -> Maps:
    """Begin and end of the writable memory without a file that this process has; empty where the system hides it."""
    if sys.platform != "linux" or mmap.PAGESIZE != 4096:
        return set()
    try:
        fields = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return set()
    kept = (f[0].split("-") for f in fields if f[1].startswith("rw") and f[5:] in ([], ["[heap]"]))
    return {(int(begin, 16), int(end, 16)) for begin, end in kept}


@contextmanager
def huge_pages() -> Iterator[None]:
    """What is loaded inside lies in huge pages afterwards; a thread moves it while the loading goes on."""
    before, done = private(), threading.Event()
    if not before:
        yield
        return

    def work() -> None:
        while True:
            last = done.wait(PAUSE)
            if not collapse(sorted(private() - before)) or last:
                break

    thread = threading.Thread(target=work, name="huge pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
