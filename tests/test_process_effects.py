"""What a Session does to its process: memory that moves into huge pages keeps what it holds, and llama.cpp's log."""

from __future__ import annotations

import mmap
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sampan.runtime.engines import _process


def huge(array: NDArray[np.uint8]) -> int:
    """Bytes in huge pages of the mappings in which an array lies; a neighbour's may have become one with them."""
    begin, held, inside = array.ctypes.data, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) < begin + array.nbytes and begin < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            held += int(line.split()[1]) * 1024
    return held


def present(array: NDArray[np.uint8]) -> int:
    """Bytes of an array that take memory."""
    with Path("/proc/self/pagemap").open("rb") as f:
        f.seek(array.ctypes.data // mmap.PAGESIZE * 8)
        return int((np.frombuffer(f.read(array.nbytes // mmap.PAGESIZE * 8), np.uint64) >> 63).sum()) * mmap.PAGESIZE


def small_pages(size: int) -> NDArray[np.uint8]:
    """Zeros that begin in pages of 4 KB; numpy asks for huge ones itself."""
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def knows_how() -> bool:
    """Linux 6.1 and later, where its builders left huge pages in; elsewhere nothing is moved."""
    release = [int(n) for n in re.findall(r"\d+", platform.release())[:2]]
    return sys.platform == "linux" and release >= [6, 1] and Path("/sys/kernel/mm/transparent_hugepage").exists()


@pytest.mark.skipif(not knows_how(), reason="this kernel does not collapse pages")
def test_contents_stay_and_unused_memory_is_left_alone() -> None:
    size, loaded = 32 << 20, _process.Loaded(wanted=True)
    with loaded:
        used, unused = small_pages(size), small_pages(size)
        used[:] = np.arange(size) % 251
    loaded.settle()
    moved()
    assert huge(used) >= size - (4 << 20)
    assert present(unused) <= 2 << 20, "at most what lies in one huge page with the used memory"
    assert (used == np.arange(size) % 251).all() and not unused.any()


def moved() -> None:
    for thread in threading.enumerate():
        if thread.name == "huge pages":
            thread.join()


def test_nothing_is_moved_elsewhere_or_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(_process, "collapse", seen.append)
    for platform_, wanted in ((sys.platform, False), ("darwin", True)):
        monkeypatch.setattr(sys, "platform", platform_)
        loaded = _process.Loaded(wanted=wanted)
        with loaded:
            held = small_pages(4 << 20)
            held[:] = 1
        loaded.settle()
        moved()
    assert not seen
    assert _process.private() == set()


@pytest.mark.skipif(sys.platform != "linux", reason="no list of mappings")
def test_mapped_files_may_have_any_name(tmp_path: Path) -> None:
    with (tmp_path / os.fsdecode(b"\xff")).open("w+b") as f:
        f.truncate(mmap.PAGESIZE)
        with mmap.mmap(f.fileno(), 0):
            assert _process.private()


LOG = """
import logging, sys
from sampan import runtime
if sys.argv[2] == "debug":
    logging.basicConfig(level=logging.DEBUG)
runtime.open(sys.argv[1], runtime.EngineOptions(process_wide=sys.argv[2] != "off"))
"""


def test_llamas_log_goes_to_pythons_or_stays_its_own(gguf: Callable[[str, str], Path]) -> None:
    def told(how: str) -> str:
        command = [sys.executable, "-c", LOG, str(gguf("trained", "q8_0")), how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert told("quiet") == ""
    kept, own = told("debug"), told("off")
    assert "DEBUG:sampan.llama:llama_model_loader: loaded meta data" in kept
    assert "llama_model_loader: loaded meta data" in own and "sampan.llama" not in own
