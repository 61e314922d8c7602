"""Memory that moves into huge pages keeps what it holds."""

from __future__ import annotations

import mmap
import platform
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sampan.runtime.engines import _pages


def huge() -> int:
    """Bytes of this process in huge pages."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found
    return int(found[1]) * 1024


def small_pages(size: int) -> NDArray[np.uint8]:
    """Zeros that begin in pages of 4 KB; numpy asks for huge ones itself."""
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def knows_how() -> bool:
    """Linux 6.1 and later, where its builders left huge pages in; elsewhere nothing is moved."""
    release = [int(n) for n in re.findall(r"\d+", platform.release())[:2]]
    return sys.platform == "linux" and release >= [6, 1] and Path("/sys/kernel/mm/transparent_hugepage").exists()


@pytest.mark.skipif(not knows_how(), reason="this kernel does not collapse pages")
def test_contents_stay_and_unused_memory_is_left_alone() -> None:
    already, size = huge(), 32 << 20
    with _pages.huge_pages():
        used, unused = small_pages(size), small_pages(size)
        used[:] = np.arange(size) % 251
    assert size - (4 << 20) <= huge() - already <= size + (4 << 20), "the used half"
    assert (used == np.arange(size) % 251).all() and not unused.any()


def test_another_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _pages.private() == set()
    with _pages.huge_pages():
        assert "huge pages" not in [t.name for t in threading.enumerate()]
