"""Fill a planned output: one pass over each shard in file order, rows decoded and encoded by threads.

A reader goes through a shard from its first byte to its last, hashes everything it passes and hands rows
to workers through a pool of buffers; workers decode, check, encode and write them to their place. Memory
is the pool and two buffers a worker, whatever the model's size. Scales and transposed codes, which lie elsewhere,
are read by the workers.
"""

from __future__ import annotations

import hashlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, wrong
from sampan.job import Job
from sampan.quantize import decode_rows, encode_rows
from sampan.quantize.channel import ChannelType

from .binding import Piece
from .encoding import read_parts
from .lossless import repacker
from .shards import Digests, Shards
from .work import Item, Work, pool_size

RECORD_SECONDS = 2.0  # between two journal entries

Progress = Callable[[int], None]
"""Called with the number of source bytes passed since the last call, from the reader's thread."""
Buffer = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of `values` values, `changed` are not the source's; sums of squares of error and source, the greatest error."""

    values: int = 0
    changed: int = 0
    error: float = 0.0
    norm: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.values + other.values,
            self.changed + other.changed,
            self.error + other.error,
            self.norm + other.norm,
            max(self.largest, other.largest),
        )


class _State:
    """What the threads share: finished items, which units hold a value other than zero, the first error."""

    def __init__(self, work: Work, job: Job) -> None:
        self.lock, self.recording = threading.Lock(), threading.Lock()
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.done = bytearray(work.count)  # by earlier runs
        self.alive = bytearray(len(work.units))
        self.hashes: dict[int, str] = {}
        self.errors: dict[int, Difference] = {}
        self.ranges: Digests = {}
        self.news: dict[str, list[Any]] = {"done": [], "alive": [], "sha256": [], "errors": [], "ranges": []}
        for entry in job.records:
            for number in entry["done"]:
                self.done[number] = 1
            self.ranges.update(entry["ranges"])
            self.hashes.update(entry["sha256"])
            for unit in entry["alive"]:
                self.alive[unit] = 1
            for unit, *difference in entry["errors"]:
                self._add(unit, Difference(*difference))

    def _add(self, unit: int, difference: Difference) -> None:
        self.errors[unit] = self.errors.get(unit, Difference()) + difference

    def fail(self, error: BaseException) -> None:
        with self.lock:
            self.error = self.error or error
        self.stop.set()

    def finish(self, item: Item, alive: bool, difference: Difference | None) -> None:
        with self.lock:
            self.news["done"].append(item.number)
            if difference is not None:
                self.news["errors"].append((item.unit, *astuple(difference)))
                self._add(item.unit, difference)
            if alive and not self.alive[item.unit]:
                self.alive[item.unit] = 1
                self.news["alive"].append(item.unit)

    def hashed(self, shard: int, digest: str) -> None:
        with self.lock:
            self.hashes[shard] = digest
            self.news["sha256"].append((shard, digest))

    def same(self, digests: Digests, shards: Shards) -> None:
        """Compare what was read with what was read of the same name before."""
        for name, digest in digests.items():
            if self.ranges.setdefault(name, digest) != digest:
                raise shards.differs(name)
            with self.lock:
                self.news["ranges"].append((name, digest))

    def record(self, job: Job) -> None:
        """Write what happened since the last call into the journal."""
        with self.recording:
            with self.lock:
                news, self.news = self.news, {key: [] for key in self.news}
            if any(news.values()):
                job.record(news)


@dataclass(frozen=True, slots=True)
class Filled:
    """SHA-256 of each shard by name; for each tensor that was compared, by name, what changed."""

    sha256: dict[str, str]
    differences: dict[str, Difference]


def fill(
    work: Work,
    shards: Shards,
    job: Job,
    jobs: int,
    *,
    allow_zero: bool = False,
    lossless: bool = False,
    progress: Progress = lambda n: None,
) -> Filled:
    """Fill every tensor with `jobs` workers.

    Raises InputError for NaN, Inf, an all-zero matrix, a value that its type cannot hold, a changed shard; where
    `lossless`, for a value that changes.
    """
    state = _State(work, job)
    checkpoint = shards.checkpoint
    pool: queue.Queue[Buffer] = queue.Queue()
    for _ in range(pool_size(jobs)):
        pool.put(np.empty(work.raw_bytes, np.uint8))
    tasks: queue.Queue[tuple[Item, Buffer] | None] = queue.Queue()

    def settle() -> None:
        """Wait until the workers have given every buffer back, and record what they did."""
        for buffer in [_get(pool, state) for _ in range(pool_size(jobs))]:
            pool.put(buffer)
        state.record(job)

    def read() -> None:
        for n, shard in enumerate(checkpoint.shards):
            items = [i for i in work.items(n) if not state.done[i.number]]
            if items or n not in state.hashes:
                state.same(shards.begin(n, items), shards)
                digest = _read_shard(n, shards, items, pool, tasks, state, progress)
                state.same(shards.check(n, digest), shards)
                state.hashed(n, digest)
                shards.release(settle)
            else:
                progress(shard.size)

    def convert() -> None:
        rows, out = np.empty(work.values, np.float32), np.empty(work.out_bytes, np.uint8)
        again = np.empty(work.values if work.compare else 0, np.float32)
        while (task := tasks.get()) is not None:
            item, raw = task
            if not state.stop.is_set():
                alive, values, encoded = _convert(item, raw, rows, out, shards, job)
                difference = None
                if work.compare:
                    difference, errors = _compare(item, values, encoded, again)
                    if lossless and difference.changed:
                        raise _not_lossless(item, values, errors, checkpoint)
                state.finish(item, alive, difference)
            pool.put(raw)

    def guarded(run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as e:
            state.fail(e)

    with shards, ThreadPoolExecutor(jobs + 1) as threads:
        for _ in range(jobs):
            threads.submit(guarded, convert)
        reader = threads.submit(guarded, read)
        try:
            last = time.monotonic()
            while not reader.done() and not state.stop.wait(0.02):
                if time.monotonic() - last >= RECORD_SECONDS:
                    state.record(job)
                    last = time.monotonic()
        except BaseException as e:
            state.fail(e)
        finally:
            for _ in range(jobs):
                tasks.put(None)
    if state.error is not None:
        raise state.error
    if not allow_zero:
        _check_alive(work, state.alive, checkpoint)
    state.record(job)
    differences: dict[str, Difference] = {}
    for unit, difference in state.errors.items():
        name = work.units[unit].tensor.bound.spec.name
        differences[name] = differences.get(name, Difference()) + difference
    return Filled({shard.name: state.hashes[n] for n, shard in enumerate(checkpoint.shards)}, differences)


class _StoppedError(Exception):
    """Another thread failed: leave quietly."""


def _read_shard(
    n: int,
    shards: Shards,
    items: list[Item],
    pool: queue.Queue[Buffer],
    tasks: queue.Queue[tuple[Item, Buffer] | None],
    state: _State,
    progress: Progress,
) -> str:
    """Pass over a whole shard: hash every byte, hand the items' bytes to the workers; returns the SHA-256."""
    digest, size = hashlib.sha256(), shards.checkpoint.shards[n].size
    position = 0

    def take(end: int) -> Buffer:
        """The next bytes, up to `end` or a buffer full, in a buffer of the pool."""
        nonlocal position
        buffer = _get(pool, state)
        view = memoryview(buffer.data)[: max(0, end - position)]
        shards.read(n, view, position)
        digest.update(view)
        position += len(view)
        progress(len(view))
        return buffer

    for item in items:
        if item.nbytes and item.offset < position:  # its bytes went to another item, too
            item = replace(item, nbytes=0)
        while position < item.offset:
            pool.put(take(item.offset))
        tasks.put((item, take(item.offset + item.nbytes)))
    while position < size:
        pool.put(take(size))
    return digest.hexdigest()


def _get(pool: queue.Queue[Buffer], state: _State) -> Buffer:
    while not state.stop.is_set():
        try:
            return pool.get(timeout=0.1)
        except queue.Empty:
            continue
    raise _StoppedError


def _convert(
    item: Item, raw: Buffer, rows: NDArray[np.float32], out: Buffer, shards: Shards, job: Job
) -> tuple[bool, NDArray[np.float32], Buffer]:
    """Decode, check, encode and write one item; returns whether any value is other than zero, the values of the output
    rows, float32 [rows, columns], and the encoded.
    """
    piece, tensor, checkpoint = item.piece, item.tensor, shards.checkpoint
    stored, columns = piece.stored, tensor.bound.stored_columns(piece)
    values = rows[: item.rows * columns].reshape(item.rows, columns)
    reads = stored.encoding.reads(stored, item.first_row, item.rows)
    buffers = read_parts(stored, reads, shards, raw, streamed=item.nbytes > 0)
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # an infinite scale: found below
            stored.encoding.decode(stored, buffers, item.first_row, values)
            for m in piece.maps:
                values = m.apply(values)
    except InputError as e:  # a companion's values
        raise InputError(f"{checkpoint.shards[piece.shard].name}: {e}") from None
    low, high = float(values.min()), float(values.max())  # NaN wins both
    if not (np.isfinite(low) and np.isfinite(high)):
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        bad = values[row][~np.isfinite(values[row])][0]
        raise wrong(_where(piece, checkpoint), "finite values", f"{bad} in row {item.first_row + row}")
    repack = repacker(stored, tensor.type) if piece.whole_rows else None
    if piece.transposed:
        values = np.ascontiguousarray(values.T)
    encoded = out[: len(values) * tensor.type.row_bytes(tensor.bound.columns)]
    try:
        if repack is not None:
            repack(buffers, item.first_row, item.rows, encoded)
        else:
            encode_rows(tensor.type, values, encoded, piece.inputs.weights() if piece.inputs else None)
    except InputError as e:
        raise InputError(f"{_where(piece, checkpoint)}: {e}; choose another --quant") from None
    _write(item, len(values), encoded, job.fds[tensor.file])
    return low != 0 or high != 0, values, encoded


def _compare(
    item: Item, values: NDArray[np.float32], encoded: Buffer, again: NDArray[np.float32]
) -> tuple[Difference, NDArray[np.float32]]:
    """What was encoded, decoded into `again`, against `values`; and the differences, float32 [rows, columns]."""
    errors = again[: values.size].reshape(values.shape)
    decode_rows(item.tensor.type, encoded, errors)
    errors -= values
    x, y = values.reshape(-1), errors.reshape(-1)
    changed = int(np.count_nonzero(y))
    if not changed:
        return Difference(x.size, 0, 0.0, float(np.dot(x, x)), 0.0), errors
    return Difference(x.size, changed, float(np.dot(y, y)), float(np.dot(x, x)), float(np.abs(y).max())), errors


def _not_lossless(
    item: Item, values: NDArray[np.float32], errors: NDArray[np.float32], checkpoint: Checkpoint
) -> InputError:
    first = int(np.flatnonzero(errors)[0])
    kind, value = item.tensor.type.name, float(values.flat[first])
    return wrong(
        _where(item.piece, checkpoint), f"values that {kind} holds, for --lossless",
        f"{value:.9g}, which becomes {value + float(errors.flat[first]):.9g}",
        "without --lossless the nearest is written and its error reported",
    )  # fmt: skip


def _write(item: Item, rows: int, encoded: Buffer, fd: int) -> None:
    """Write the `rows` rows of each array of the tensor's type to their places."""
    tensor, start = item.tensor, 0
    if isinstance(tensor.type, ChannelType) and tensor.type.turned:
        _write_turned(item, rows, encoded, fd, tensor.type)
        return
    for offset, row in zip(tensor.offsets, tensor.type.part_bytes(tensor.bound.columns), strict=True):
        part = encoded[start : start + rows * row]
        start += part.size
        if item.piece.step == 1:
            _pwrite(fd, part, offset + item.at * row)
        else:
            for n in range(rows):
                _pwrite(fd, part[n * row : (n + 1) * row], offset + (item.at + n * item.piece.step) * row)


def _write_turned(item: Item, rows: int, encoded: Buffer, fd: int, kind: ChannelType) -> None:
    """The same of arrays whose lines hold a value of every row: a piece of each line."""
    tensor, start, columns = item.tensor, 0, item.tensor.bound.columns
    for offset, row, lines in zip(tensor.offsets, kind.part_bytes(columns), kind.lines(columns), strict=True):
        part = encoded[start : start + rows * row].reshape(lines, -1)
        start += part.size
        whole, at = tensor.bound.rows * row // lines, item.at * row // lines
        for n, line in enumerate(part):
            _pwrite(fd, line, offset + n * whole + at)


def _pwrite(fd: int, data: Buffer, position: int) -> None:
    view = data.data
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written


def _check_alive(work: Work, alive: bytearray, checkpoint: Checkpoint) -> None:
    for flag, unit in zip(alive, work.units, strict=True):
        piece = unit.piece
        if not flag and not unit.tensor.bound.spec.may_be_zero:
            whole = piece.rows == math.prod(piece.stored.shape[:-1])
            rows = "" if whole else f"rows {piece.start} to {piece.start + piece.rows - 1} of "
            raise wrong(
                _where(piece, checkpoint), "values", f"nothing but zeros in {rows}it",
                "--allow-zero converts it all the same",
            )  # fmt: skip


def _where(piece: Piece, checkpoint: Checkpoint) -> str:
    return f"{checkpoint.shards[piece.shard].name}: {piece.info.name}"
