"""The files of an artifact that is open: what they are, and whether they still are it."""

from __future__ import annotations

import contextlib
import hashlib
import re
from functools import cached_property
from pathlib import Path

from sampan.errors import ChangedError
from sampan.files import size_of
from sampan.onnx import GRAPH

from .engines._process import guard

WHOLE, WINDOWS, WINDOW = 1 << 20, 256, 4096  # of a file: bytes at its start, pieces of the rest, bytes of a piece
SUFFIXES = (".onnx", ".data", ".bin", ".rknn")  # of graphs, their weights, and what was compiled of them
PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")


class Opened:
    """Made before an artifact is opened. Engines map files: what is written into one is read as weights."""

    def __init__(self, path: Path | None = None, *, process_wide: bool = False) -> None:
        self._paths = _files(path) if path else []
        self._known = [_stamp(p) for p in self._paths]
        if process_wide:
            guard(self._paths)

    def __bool__(self) -> bool:
        return bool(self._paths)

    def check(self) -> None:
        """Raises ChangedError where a file was written to. One that was renamed or deleted is still open as it was."""
        for path, known in zip(self._paths, self._known, strict=True):
            now = _stamp(path)
            if now and known and now[0] == known[0] and now != known:
                raise ChangedError(
                    f"{path}: the file was changed while it was open, and is no model any more; open it anew"
                )

    @cached_property
    def identity(self) -> str:
        """A hash: sizes, starts and pieces from all over the files, in a few megabytes of reading."""
        found = hashlib.blake2b(digest_size=16)
        for p in self._paths:
            size = size_of(p)
            found.update(size.to_bytes(8, "little"))
            with p.open("rb") as f:
                found.update(f.read(WHOLE))
                for n in range(WINDOWS if size > WHOLE else 0):
                    f.seek(WHOLE + (size - WHOLE) * n // WINDOWS)
                    found.update(f.read(WINDOW))
        return found.hexdigest()


def _files(path: Path) -> list[Path]:
    """A folder's graphs with what they load, all parts of a split file, or the file; engines say what is unreadable."""
    if path.is_dir():
        with contextlib.suppress(OSError):
            return sorted(p for p in path.iterdir() if (GRAPH in p.name or p.suffix in SUFFIXES) and p.is_file())
        return []
    split = PART.fullmatch(path.name)
    return sorted(path.parent.glob(f"{split[1]}-*-of-*.gguf")) if split else [path]


def _stamp(path: Path) -> tuple[tuple[int, int], int, int] | None:
    """Which file, its size, and when it was written to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns
