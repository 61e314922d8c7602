"""Output that appears under its final name only when it is complete, and can be resumed after a kill.

Until then all of it lies in one folder beside that name, `OUT.unfinished/`: `data/` with the files, laid out at full
size, and a journal, whose first line identifies the job, the next ones list finished work and the last one says what
gets its name. That line is the moment when the output is decided: whoever comes next, whatever for, finishes it. The
journal carries the lock, which the kernel drops with the process. A folder without a journal is not ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .artifact import MANIFEST, OutputFile, manifest_beside, replaced, write_durably
from .errors import MEND, InputError, UnfinishedError, brief, wrong
from .journal import Journal
from .units import human

JOURNAL, DATA, OLD, SHARD = "sampan.journal", "data", "old", "shard"


def work_folder(out: Path) -> Path:
    """Where an output lies until it is complete."""
    if out.name in ("", ".."):
        raise InputError(f"{out}: the output needs a name of its own: add one, as in {out / 'model'}")
    return out.with_name(out.name + ".unfinished")


def shard_in_hand(out: Path) -> Path:
    """Where a streamed shard lies until the output holds what was in it."""
    return work_folder(out) / SHARD


@dataclass(slots=True)
class Job:
    """An open output: write with `os.pwrite(fds[n], …)`, report finished work with `record`.

    `records` are the entries of an earlier, killed run of the same job; `restarted` says why an earlier run was thrown
    away instead; `finished`: an earlier run had decided the output, and it has its name now; `untried`: why
    no engine has opened it.
    """

    out: Path
    files: tuple[OutputFile, ...]
    overwrite: bool
    journal: Journal | None
    fds: list[int] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    restarted: str = ""
    finished: bool = False
    untried: str = ""

    @property
    def artifact(self) -> Path:
        """What to open before it is complete: a folder, or the first file."""
        data = work_folder(self.out) / DATA
        return data if self.files[0].folder else data / self.files[0].path.name

    def record(self, entry: dict[str, Any]) -> None:
        """Make the data durable, then the note that says so: the note never outlives the data."""
        for fd in self.fds:
            os.fdatasync(fd)
        self._append(entry)

    def adopt(self, names: Sequence[str]) -> None:
        """Make files part of the output that were made beside the planned ones; what an earlier run left goes."""
        data = self.artifact if self.files[0].folder else self.artifact.parent
        planned = {f.path.name for f in self.files}
        for path in data.iterdir():
            if path.name not in planned and path.name not in names:
                path.unlink()
        for name in names:
            self.fds.append(os.open(data / name, os.O_RDWR | os.O_NOFOLLOW))
            size = os.fstat(self.fds[-1]).st_size
            self.files += (OutputFile(self.out / name, b"", size, folder=self.files[0].folder),)

    def commit(self, manifest: bytes) -> None:
        """Give everything its final name.

        Raises UnfinishedError where something came in the way, or the disk is full: all that was written is kept.
        """
        work, folder = work_folder(self.out), self.files[0].folder
        for fd in self.fds:
            os.fsync(fd)
        write_durably(work / DATA / MANIFEST if folder else work / MANIFEST, manifest)
        for place in (work / DATA, work):
            _sync(place)
        try:
            old = replaced(self.out, self.files, self.overwrite)
        except InputError as e:
            raise UnfinishedError(
                f"{e} (it came while this was converted: what was converted is kept, and the same command takes it up)"
            ) from None
        files = {f.path.name: f.size for f in self.files}
        decided = {"folder": folder, "files": files, "old": old}
        self._append({"commit": decided})
        if not _finish(self.out, decided):
            raise UnfinishedError(f"{work}: a file in it changed while it was written; run again")

    def _append(self, entry: dict[str, Any]) -> None:
        assert self.journal is not None  # noqa: S101 - a finished job has nothing to say
        self.journal.append(entry)


@contextlib.contextmanager
def open_job(out: Path, files: tuple[OutputFile, ...], identity: dict[str, Any], *, overwrite: bool) -> Iterator[Job]:
    """Lock, lay out (or resume) and finally close an output; an InputError inside throws it away, any other error but
    that keeps it.

    Raises InputError when the output exists, is being written by another run, or does not fit the disk.
    """
    if settle(out, identity):
        yield Job(out, files, overwrite, None, finished=True)
        return
    replaced(out, files, overwrite)
    with _full_disk(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        journal = _lock(out)
        job = Job(out, files, overwrite, journal)
        try:
            _recover(job, identity)
            _lay_out(job, identity)
            yield job
        except UnfinishedError:
            raise
        except InputError:
            _clean(out)
            raise
        finally:
            for fd in (*job.fds, journal.fd):
                os.close(fd)


def settle(out: Path, identity: dict[str, Any]) -> bool:
    """Finish what an earlier run had decided; returns whether that was this very job."""
    if not os.path.lexists(work_folder(out) / JOURNAL):
        with contextlib.suppress(OSError):  # an empty folder: a kill came just before its end
            work_folder(out).rmdir()
        return False
    with _full_disk(out):
        journal = _lock(out)
        try:
            entries = journal.read() or [{}]
            decided = entries[-1].get("commit")
            return decided is not None and _finish(out, decided) and entries[0] == _plain(identity)
        finally:
            os.close(journal.fd)


@contextlib.contextmanager
def _full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in MEND:
            raise
        raise UnfinishedError(
            f"{out}: {e.strerror or 'the disk is full'}: {MEND[e.errno]} and run again: what was converted is kept"
        ) from None


def _plain(identity: dict[str, Any]) -> Any:
    return json.loads(json.dumps(identity))


def _lock(out: Path) -> Journal:
    """Open the journal, in a new folder or in one that is ours."""
    work = work_folder(out)
    path = work / JOURNAL
    while True:
        with contextlib.suppress(FileExistsError):
            work.mkdir()
        try:
            names = {p.name for p in work.iterdir()}
            if work.is_symlink() or (names and (JOURNAL not in names or not stat.S_ISREG(path.lstat().st_mode))):
                raise NotADirectoryError
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # the run before us finished and removed it between our two calls
            continue
        except NotADirectoryError:
            raise InputError(
                f"{work}: the unfinished output would lie there, and this is no folder of ours with a {JOURNAL} in it: "
                "move it away, or choose another name for the output"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InputError(f"{out}: another run is writing this output; wait for it or choose another name") from None
        if path.exists() and os.fstat(fd).st_ino == path.stat().st_ino:
            return Journal(fd)
        os.close(fd)  # likewise


def _recover(job: Job, identity: dict[str, Any]) -> None:
    """Take an earlier run's records; another job's leaves are thrown away."""
    assert job.journal is not None  # noqa: S101 - it was locked
    entries = job.journal.read()
    if entries == []:
        return
    data = work_folder(job.out) / DATA
    first = entries[0] if entries else {}
    other = [key for key, value in _plain(identity).items() if first.get(key) != value]
    if entries is None or "commit" in entries[-1]:
        job.restarted = "an unfinished output was found, but it is damaged"
    elif other:
        job.restarted = f"an unfinished output was found, but with another {', '.join(other)}"
    elif not all(_has(data / f.path.name, f.size) for f in job.files):
        job.restarted = "an unfinished output was found, but it is damaged"
    else:
        job.records = entries[1:]
    if job.restarted:
        shard_in_hand(job.out).unlink(missing_ok=True)


def _has(path: Path, size: int) -> bool:
    """Whether a regular file of that size lies there."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _lay_out(job: Job, identity: dict[str, Any]) -> None:
    """Open the files; new ones get their headers and all their room, so that a full disk shows at once."""
    assert job.journal is not None  # noqa: S101 - it was locked
    data = work_folder(job.out) / DATA
    if data.is_symlink():
        raise UnfinishedError(
            f"{data}: expected the folder that we made, found a link: put the folder itself back there"
        )
    if job.records:
        job.fds += [os.open(data / f.path.name, os.O_RDWR | os.O_NOFOLLOW) for f in job.files]
        return
    job.journal.clear()
    _clear(data)
    data.mkdir()
    for file in job.files:
        fd = os.open(data / file.path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        job.fds.append(fd)
        try:
            if shutil.disk_usage(data).free < file.size:
                raise OSError(errno.ENOSPC, "")
            if file.size:
                os.posix_fallocate(fd, 0, file.size)
            rest, at = memoryview(file.header), 0
            while rest:
                written = os.pwrite(fd, rest, at)
                rest, at = rest[written:], at + written
        except OSError as e:
            if e.errno not in MEND:
                raise
            free = shutil.disk_usage(data).free
            raise wrong(file.path, f"{human(file.size)} of free disk", f"{human(free)}") from None
    job.journal.append(identity)


def _finish(out: Path, decided: dict[str, Any]) -> bool:
    """Give everything its name, from wherever a kill may have stopped this before; False where a file is missing."""
    work = work_folder(out)
    folder, files = decided["folder"], decided["files"]
    final = out if folder else out.parent
    if not all(_has(work / DATA / name, size) or _has(final / name, size) for name, size in files.items()):
        if os.path.lexists(work / OLD) and not os.path.lexists(out):
            (work / OLD).rename(out)
        return False
    if folder:
        _swap(out, decided["old"])
    else:
        manifest = work / MANIFEST
        if manifest.exists():  # the older one tells of other bytes
            manifest_beside(out).unlink(missing_ok=True)
        for name in files:
            if (work / DATA / name).exists():
                (work / DATA / name).replace(final / name)
        if manifest.exists():
            manifest.replace(manifest_beside(out))
        for name in decided["old"]:
            (final / name).unlink(missing_ok=True)
    _sync(out.parent)
    _clean(out)
    return True


def _swap(out: Path, names: list[str]) -> None:
    """Put a folder in the place of another, whose files have these names."""
    data, old = work_folder(out) / DATA, work_folder(out) / OLD
    if data.exists():
        if names and out.exists() and not old.exists():
            out.rename(old)
        try:
            data.rename(out)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise UnfinishedError(
                f"{out}: something came there while the output was finished: move it away, then run again"
            ) from None
    if old.exists():
        for name in names:
            (old / name).unlink(missing_ok=True)
        if other := next(old.iterdir(), None):
            raise UnfinishedError(
                f"{old}: {brief(other.name)} is no part of the artifact that was replaced: move it away, then run again"
            )
        old.rmdir()


def _clean(out: Path) -> None:
    """Remove our folder; the journal goes last, since it says that the rest is ours."""
    work = work_folder(out)
    for name in (SHARD, MANIFEST):
        (work / name).unlink(missing_ok=True)
    _clear(work / DATA)
    (work / JOURNAL).unlink()
    with contextlib.suppress(OSError):  # somebody put a file of his own there
        work.rmdir()


def _clear(data: Path) -> None:
    """Remove the unfinished files, and their folder."""
    if data.is_dir() and not data.is_symlink():
        for path in data.iterdir():
            path.unlink()
    with contextlib.suppress(FileNotFoundError):
        data.rmdir()


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
