"""Memory that moves into huge pages keeps what it holds."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from sampan.runtime.engines import _pages


def huge() -> int:
    """Bytes of this process in huge pages."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found
    return int(found[1]) * 1024


def knows_how() -> bool:
    """Linux 6.1 and later, where its builders left huge pages in; elsewhere nothing is moved."""
    release = [int(n) for n in re.findall(r"\d+", platform.release())[:2]]
    return sys.platform == "linux" and release >= [6, 1] and Path("/sys/kernel/mm/transparent_hugepage").exists()


@pytest.mark.skipif(not knows_how(), reason="this kernel does not collapse pages")
def test_contents_stay_and_unused_memory_is_left_alone() -> None:
    before, already = _pages.private(), huge()
    used, unused = np.arange(4 << 20, dtype=np.int64), np.zeros(4 << 20, np.int64)  # 32 MB each
    moved = _pages.collapse(sorted(_pages.private() - before))
    assert 28 << 20 <= moved <= 40 << 20, "the used half"
    assert huge() - already >= moved - (4 << 20)
    assert (used == np.arange(4 << 20)).all() and not unused.any()


def test_another_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _pages.private() == set()
