"""A process that dies, or a disk that is full, at the n-th system call that changes something on the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WRITES = ("write", "pwrite")
ROOM = ("open", "posix_fallocate", "mkdir", *WRITES)  # what a full disk refuses for as long as it is full
CALLS = (*ROOM, "ftruncate", "fsync", "fdatasync", "rmdir", "unlink", "rename", "replace")


class KilledError(BaseException):
    """Nothing that this process would still do to the disk happens: as after SIGKILL."""


class Faults:
    """Counts the calls from when `on` is set; `at` is the first that goes wrong, `happened` whether there was one.

    kind: "kill"; "torn", a kill in the middle of a write; "full", a disk that is full from then on; "once", a disk
    that is full at that call; a write does half of it first.
    """

    def __init__(self, at: int, kind: str) -> None:
        self.at, self.kind, self.count, self.happened, self.on = at, kind, 0, False, True

    def __call__(self, name: str, real: Any, *args: Any, **more: Any) -> Any:
        if not self.on or (name == "open" and not args[1] & os.O_CREAT):
            return real(*args, **more)
        self.count += 1
        if self.count < self.at or (self.count > self.at and self.kind == "once"):
            return real(*args, **more)
        if self.kind in ("full", "once"):
            if self.count > self.at and name not in ROOM:
                return real(*args, **more)
            if self.count == self.at and name in ("unlink", "rmdir", "ftruncate"):
                self.at += 1  # those need no room
                return real(*args, **more)
        first, self.happened = not self.happened, True
        if name in WRITES and self.kind != "kill" and first and len(args[1]) > 1:
            half = memoryview(args[1])[: len(args[1]) // 2]
            written = real(args[0], half, *args[2:])
            if self.kind in ("full", "once"):
                self.at = self.count + 1  # the caller comes again for the rest
                return written
        if self.kind in ("kill", "torn"):
            raise KilledError
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def faults(at: int, kind: str, *, on: bool = True) -> Iterator[Faults]:
    """Within it, the calls of `os` go wrong."""
    state = Faults(at, kind)
    state.on = on
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            real = getattr(os, name)
            patch.setattr(os, name, lambda *a, _name=name, _real=real, **k: state(_name, _real, *a, **k))
        yield state
