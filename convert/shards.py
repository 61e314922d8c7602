"""Where the pass over the shards gets its bytes: from files, or from a hub with one shard at a time on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from sampan.checkpoint import Body, Checkpoint, Shard
from sampan.errors import InputError, UnfinishedError, brief, wrong
from sampan.job import shard_in_hand
from sampan.safetensors import TensorInfo
from sampan.units import human

from .binding import Binding, other_head, tied_pair
from .encoding import Part
from .work import Item, Work

BLOCK = 1 << 22  # bytes hashed at once
HEAD = "the tied head"

Digests = dict[str, str]
"""What must be read alike wherever it is read, by name: SHA-256."""


class Shards:
    """Shards that lie in files, opened when first asked for. `[n]` is shard n's descriptor, for reads anywhere."""

    def __init__(self, checkpoint: Checkpoint, binding: Binding) -> None:
        self.checkpoint = checkpoint
        self.zeros = binding.zeros
        self.fds: dict[int, int] = {}

    def __getitem__(self, n: int) -> int:
        return self.fds[n]

    def begin(self, n: int, items: Iterable[Item]) -> Digests:
        """Called before the pass over shard n, of which `items` are needed."""
        for shard in {n, *(p.shard for item in items for p in item.piece.stored.parts)} - self.fds.keys():
            path = self.checkpoint.shards[shard].path
            assert path is not None  # noqa: S101 - others are streamed
            self.fds[shard] = os.open(path, os.O_RDONLY)
        return {}

    def read(self, n: int, view: memoryview, position: int) -> None:
        """The pass: the bytes of shard n at `position`, each once and in order."""
        got = os.preadv(self.fds[n], [view], position)
        if got != len(view):
            shard = self.checkpoint.shards[n]
            found = f"{position + got} bytes"
            raise wrong(shard.path, f"{shard.size} bytes", found, "the file changed while it was read")

    def check(self, n: int, digest: str) -> Digests:
        """Called behind the pass, with the SHA-256 of all that came."""
        shard = self.checkpoint.shards[n]
        if shard.sha256 not in (None, digest):
            raise _damaged(shard, digest, "delete the file and run again")
        self._check_zeros(n)
        return {}

    def _check_zeros(self, n: int) -> None:
        """Biases of shard n that no module has change nothing only if they are zero."""
        for part in self.zeros:
            if part.shard == n and os.pread(self.fds[n], part.info.nbytes, part.info.offset).strip(b"\0"):
                where = f"{self.checkpoint.shards[n].name}: {brief(part.info.name)}"
                raise InputError(f"{where}: a bias that is not zero, and the model has none there; it is another model")

    def release(self, settle: Callable[[], None]) -> None:
        """Called behind that; `settle` waits until everything that was handed on is in the output and the journal."""

    def differs(self, name: str) -> InputError:
        """The error of something that was read twice and was not the same."""
        return wrong(name, "the same bytes at every read", "others", "the hub sent something else; run again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


class Stream(Shards):
    """Shards of a hub. The one in hand lies beside the output as far as it has come, also after a kill: the pass reads
    that again, and goes on from the hub. Of other shards the scales that it needs are fetched before.
    """

    def __init__(self, checkpoint: Checkpoint, work: Work, binding: Binding, out: Path) -> None:
        super().__init__(checkpoint, binding)
        self.path = shard_in_hand(out)
        self.have = 0  # bytes of the shard in hand
        self.coming: Iterator[bytes] = iter(())
        self.watched: dict[int, dict[str, TensorInfo]] = {}
        self.twins = tied_pair(binding)
        for unit in work.units:
            for part in unit.piece.stored.parts:
                if part.shard != unit.piece.shard:
                    self._watch(part.info.name, part)

    def _watch(self, name: str, part: Part) -> None:
        self.watched.setdefault(part.shard, {})[name] = part.info

    def begin(self, n: int, items: Iterable[Item]) -> Digests:
        """Fetch what lies in other shards, open what is here of this one."""
        shard = self.checkpoint.shards[n]
        others: dict[int, dict[int, TensorInfo]] = {}
        for item in items:
            for part in item.piece.stored.parts:
                if part.shard != n:
                    others.setdefault(part.shard, {})[part.info.offset] = part.info
        digests: Digests = {}
        for other, infos in others.items():
            digests |= self._fetch(other, [infos[offset] for offset in sorted(infos)])
        self.fds[n] = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self.have = min(os.fstat(self.fds[n]).st_size, shard.size)
        if not _begins(self.fds[n], shard):
            self.have = 0
        os.ftruncate(self.fds[n], self.have)
        self._room(shard.size - self.have)
        self.coming = _body(shard)(self.have, shard.size)
        return digests

    def _fetch(self, n: int, infos: list[TensorInfo]) -> Digests:
        """Tensors of another shard, in order, each run of neighbours in one request, into a nameless sparse file."""
        with tempfile.TemporaryFile(dir=self.path.parent) as f:
            self.fds[n] = os.dup(f.fileno())
        self._room(sum(i.nbytes for i in infos))
        runs: list[list[int]] = []
        for info in infos:
            if not runs or runs[-1][1] != info.offset:
                runs.append([info.offset, info.offset])
            runs[-1][1] += info.nbytes
        for start, stop in runs:
            for piece in _body(self.checkpoint.shards[n])(start, stop):
                self._write(n, memoryview(piece), start)
                start += len(piece)
        return {i.name: _digest(self.fds[n], i) for i in infos}

    def read(self, n: int, view: memoryview, position: int) -> None:
        """From the file, which goes on from the hub as far as is needed."""
        while self.have < position + len(view):
            piece = next(self.coming)
            self._write(n, memoryview(piece), self.have)
            self.have += len(piece)
        if os.preadv(self.fds[n], [view], position) != len(view):
            raise wrong(self.path, f"{self.have} bytes", "fewer", "the file changed while it was read")

    def _write(self, n: int, data: memoryview, position: int) -> None:
        try:
            while data:
                written = os.pwrite(self.fds[n], data, position)
                data, position = data[written:], position + written
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._full(len(data)) from None

    def _room(self, size: int) -> None:
        if shutil.disk_usage(self.path.parent).free < size:
            raise self._full(size)

    def _full(self, size: int) -> InputError:
        free = shutil.disk_usage(self.path.parent).free
        return UnfinishedError(
            str(wrong(self.path, f"{human(size)} of free disk", human(free), "run again to continue"))
        )

    def check(self, n: int, digest: str) -> Digests:
        """What other shards needed of this one, and a tied head, must be what came for them."""
        shard = self.checkpoint.shards[n]
        if shard.sha256 != digest:
            raise _damaged(shard, digest, "run again")
        self._check_zeros(n)
        found = {name: _digest(self.fds[n], info) for name, info in self.watched.get(n, {}).items()}
        for part in self.twins:
            if part.shard == n:
                value = _digest(self.fds[n], part.info)
                if found.setdefault(HEAD, value) != value:
                    raise self.differs(HEAD)
        return found

    def differs(self, name: str) -> InputError:
        """Also of a tied head that is another."""
        return other_head(self.checkpoint, *self.twins) if name == HEAD else super().differs(name)

    def release(self, settle: Callable[[], None]) -> None:
        """Delete the shard in hand, and what came of others."""
        settle()
        self._close()
        self.path.unlink(missing_ok=True)


def is_streamed(checkpoint: Checkpoint) -> bool:
    """Whether the weights come from a hub while they are converted; a plan of such a checkpoint is the same."""
    return all(s.body is not None for s in checkpoint.shards)


def _body(shard: Shard) -> Body:
    assert shard.body is not None  # noqa: S101 - the checkpoint is streamed
    return shard.body


def _begins(fd: int, shard: Shard) -> bool:
    """Whether a file begins with the shard's header."""
    length = 8 + int.from_bytes(os.pread(fd, 8, 0), "little")
    if length > shard.size:
        return False
    return hashlib.sha256(os.pread(fd, length, 0)).hexdigest() == shard.header_sha256


def _digest(fd: int, info: TensorInfo) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(BLOCK, info.nbytes)))
    for position in range(info.offset, info.offset + info.nbytes, BLOCK):
        view = buffer[: info.offset + info.nbytes - position]
        if os.preadv(fd, [view], position) != len(view):
            raise wrong(info.name, f"{len(view)} bytes", "fewer", "the file changed")
        digest.update(view)
    return digest.hexdigest()


def _damaged(shard: Shard, digest: str, hint: str) -> InputError:
    where = shard.path or shard.name
    return wrong(where, f"SHA-256 {shard.sha256} as the hub lists", digest, hint)
