"""Output that appears under its final name only when it is complete, and can be resumed after a kill.

`model.gguf` is written as `model.gguf.part`, laid out at full size, with `model.gguf.journal` beside it:
a first line that identifies the job, then lines that list finished work. The journal carries the lock,
which the kernel drops with the process. `model.gguf.shard` is what has come of the shard that is being streamed.
An artifact that is a folder is written as `NAME.part/` and renamed whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError, wrong
from .units import human

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of an artifact: its final path, its first bytes, its whole size.

    `folder`: the artifact is the folder that holds the file.
    """

    path: Path
    header: bytes
    size: int
    folder: bool = False

    @property
    def part(self) -> Path:
        """Where the file lies until it is complete."""
        return _part(self.path.parent) / self.path.name if self.folder else _part(self.path)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def manifest_path(out: Path) -> Path:
    """`model.gguf` → `model.gguf.manifest.json`; a folder holds its own `manifest.json`."""
    return out / MANIFEST if out.is_dir() else out.with_name(f"{out.name}.{MANIFEST}")


def shard_in_hand(out: Path) -> Path:
    """Where a streamed shard lies until the output holds what was in it."""
    return out.with_name(out.name + ".shard")


def manifest_bytes(data: dict[str, Any]) -> bytes:
    """A manifest as JSON: a line for each key, and for each entry of a section."""
    parts = []
    for key, value in data.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict) and value:
            entries = (f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            text = "{\n" + ",\n".join(entries) + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()


@dataclass(slots=True)
class Job:
    """An open output: write with `os.pwrite(fds[n], …)`, report finished work with `record`.

    `records` are the entries of an earlier, killed run of the same job; `restarted` says why an earlier
    run was thrown away instead.
    """

    out: Path
    files: tuple[OutputFile, ...]
    journal: Path
    lock_fd: int
    fds: list[int] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    restarted: str = ""

    def record(self, entry: dict[str, Any]) -> None:
        """Make the data durable, then the note that says so: the note never outlives the data."""
        for fd in self.fds:
            os.fdatasync(fd)
        os.write(self.lock_fd, json.dumps(entry).encode() + b"\n")
        os.fdatasync(self.lock_fd)

    def commit(self, manifest: bytes) -> None:
        """Give everything its final name; the journal goes last."""
        for fd in self.fds:
            os.fsync(fd)
        if self.files[0].folder:
            write_atomically(_part(self.out) / MANIFEST, manifest)
            _replace_folder(_part(self.out), self.out)
        else:
            for file in self.files:
                file.part.replace(file.path)
            write_atomically(manifest_path(self.out), manifest)
        shard_in_hand(self.out).unlink(missing_ok=True)
        _sync_folder(self.journal.parent)
        self.journal.unlink()


@contextlib.contextmanager
def open_job(out: Path, files: tuple[OutputFile, ...], identity: dict[str, Any], *, overwrite: bool) -> Iterator[Job]:
    """Lock, lay out (or resume) and finally close an output; nothing is committed here.

    Raises InputError when the output exists, is being written by another run, or does not fit the disk.
    """
    if files[0].folder:
        check_folder(out, overwrite)
        _part(out).mkdir(parents=True, exist_ok=True)
    else:
        for file in files:
            _check_file(file.path, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = out.with_name(out.name + ".journal")
    lock_fd = _lock(journal, out)
    job = Job(out, files, journal, lock_fd)
    try:
        _recover(job, identity)
        try:
            for file in files:
                job.fds.append(_lay_out(file, fresh=not job.records))
        except InputError:
            discard(out, files)
            raise
        if not job.records:
            os.ftruncate(lock_fd, 0)
            os.write(lock_fd, json.dumps(identity).encode() + b"\n")
        yield job
    finally:
        for fd in (*job.fds, lock_fd):
            os.close(fd)


def discard(out: Path, files: Iterable[OutputFile]) -> None:
    """Remove an unfinished output and its journal."""
    for file in files:
        file.part.unlink(missing_ok=True)
        if file.folder and file.part.parent.exists() and not any(file.part.parent.iterdir()):
            file.part.parent.rmdir()
    shard_in_hand(out).unlink(missing_ok=True)
    out.with_name(out.name + ".journal").unlink(missing_ok=True)


def _check_file(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise wrong(path, "a file name for the output", "a folder")
    if path.exists() and not overwrite:
        raise wrong(path, "a new file name", "an existing file", "use --overwrite to replace it")


def check_folder(out: Path, overwrite: bool) -> None:
    """Only an artifact of ours is ever replaced: a folder may hold anything."""
    if out.exists() and not out.is_dir():
        raise wrong(out, "a folder name for the output", "a file")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise wrong(out, "a new folder name", "a folder with other files in it")
        if not overwrite:
            raise wrong(out, "a new folder name", "an existing artifact", "use --overwrite to replace it")


def _replace_folder(part: Path, out: Path) -> None:
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.replace(old)
    part.replace(out)
    if old.exists():
        shutil.rmtree(old)


def _lock(journal: Path, out: Path) -> int:
    while True:
        fd = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InputError(f"{out}: another run is writing this output; wait for it or choose another name") from None
        if journal.exists() and os.fstat(fd).st_ino == journal.stat().st_ino:
            return fd
        os.close(fd)  # the run before us finished and removed the journal between our two calls


def _recover(job: Job, identity: dict[str, Any]) -> None:
    """Read an earlier run's journal; another job's leaves are thrown away."""
    lines = job.journal.read_bytes().split(b"\n")
    if lines == [b""]:
        return
    try:
        found = [json.loads(line) for line in lines[:-1]]  # what follows the last newline was cut by a kill
    except ValueError:
        found = []
    parts = all(f.part.exists() and f.part.stat().st_size == f.size for f in job.files)
    before = found[0] if found and isinstance(found[0], dict) else {}
    other = [key for key in identity if before.get(key) != identity[key]]
    if not before or (not other and not parts):
        job.restarted = "an unfinished output was found, but it is damaged"
    elif other:
        job.restarted = f"an unfinished output was found, but with another {', '.join(other)}"
    else:
        job.records = found[1:]
        os.ftruncate(job.lock_fd, sum(len(line) + 1 for line in lines[:-1]))
    if job.restarted:
        shard_in_hand(job.out).unlink(missing_ok=True)
    if not job.records:
        for file in job.files:
            file.part.unlink(missing_ok=True)


def _lay_out(file: OutputFile, *, fresh: bool) -> int:
    """Open a part file; a fresh one gets its header and all its room, so that a full disk shows at once."""
    fd = os.open(file.part, os.O_RDWR | os.O_CREAT, 0o644)
    if not fresh:
        return fd
    try:
        free = shutil.disk_usage(file.part.parent).free
        if free < file.size:
            raise OSError(errno.ENOSPC, "")
        os.posix_fallocate(fd, 0, file.size)
        os.pwrite(fd, file.header, 0)
    except OSError as e:
        os.close(fd)
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(file.part.parent).free
            raise wrong(file.path, f"{human(file.size)} of free disk", f"{human(free)}") from None
        raise
    return fd


def write_atomically(path: Path, data: bytes) -> None:
    """A small file, complete or not there."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
