"""Cut a plan into work items whose buffers stay within a memory bound, in the order of the source files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sampan.errors import wrong
from sampan.quantize.channel import ChannelType

from .binding import Piece
from .encoding import Read, buffer_size
from .plan import PlannedTensor

CHUNK_VALUES = 1 << 20  # values in one work item: 4 MB as float32, which stays in the cache


@dataclass(frozen=True, slots=True)
class Item:
    """Some rows of one piece: `at` is the first row in the output tensor.

    `offset`, `nbytes`: what the pass over the shard hands on. Codes that do not lie together (transposed weights), or
    whose scales are still to come, are read by the worker when the pass is behind them all: then `nbytes` is 0.
    """

    number: int
    tensor: PlannedTensor
    piece: Piece
    unit: int  # the piece's number: its rows must not all be zero together
    first_row: int  # within the stored tensor
    offset: int
    nbytes: int
    rows: int
    at: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of an output tensor, the number of its first item and the rows of each item."""

    number: int
    tensor: PlannedTensor
    piece: Piece
    first_item: int
    step: int


@dataclass(frozen=True, slots=True)
class Work:
    """The pieces, by number; their items are made when their shard is reached: there may be millions.

    `count`: of all items. `values`, `raw_bytes` and `out_bytes` are those of the largest item. `compare`: what was
    written is decoded again and compared with its source. `streamed`: a shard's bytes are there when the pass has
    reached them, not before.
    """

    units: tuple[Unit, ...]
    by_shard: tuple[tuple[Unit, ...], ...]
    count: int
    values: int
    raw_bytes: int
    out_bytes: int
    compare: bool
    streamed: bool

    def buffers(self, jobs: int) -> int:
        """Bytes of all row buffers with `jobs` workers."""
        rows = 8 if self.compare else 4
        return jobs * (rows * self.values + self.out_bytes) + pool_size(jobs) * self.raw_bytes

    def items(self, shard: int) -> list[Item]:
        """The items of one shard, in file order."""
        found = [item for unit in self.by_shard[shard] for item in _items(unit, self.streamed)]
        return sorted(found, key=lambda i: (i.offset, i.nbytes))


def pool_size(jobs: int) -> int:
    """Raw buffers: one in each worker's hands, two on the way."""
    return jobs + 2


def cut(
    tensors: Sequence[PlannedTensor],
    shards: int,
    jobs: int,
    max_memory: int,
    *,
    compare: bool = False,
    streamed: bool = False,
) -> Work:
    """Cut the tensors of a plan into items whose buffers stay within `max_memory` bytes (a row is never cut)."""
    chunk, one_row = CHUNK_VALUES, max(t.bound.columns for t in tensors)
    work = _cut(tensors, shards, chunk, compare, streamed)
    while work.buffers(jobs) > max_memory and chunk > one_row:
        chunk //= 2
        work = _cut(tensors, shards, chunk, compare, streamed)
    if work.buffers(jobs) > max_memory:
        raise wrong(
            "--max-memory",
            f"at least {work.buffers(jobs)} bytes for {jobs} jobs",
            max_memory,
            "or fewer --jobs",
        )
    return work


def _cut(tensors: Sequence[PlannedTensor], shards: int, chunk: int, compare: bool, streamed: bool) -> Work:
    units: list[Unit] = []
    number = values = raw = out = 0
    sizes: dict[tuple[object, ...], int] = {}  # the experts of a layer are cut alike
    for tensor in tensors:
        row_out = tensor.type.row_bytes(tensor.bound.columns)
        for piece in tensor.bound.pieces:
            stored, columns = piece.stored, tensor.bound.stored_columns(piece)
            step = max(1, chunk // columns)
            whole = piece.rows if piece.transposed else step // stored.step * stored.step or step
            if isinstance(tensor.type, ChannelType) and tensor.type.turned:
                whole += whole % 2  # two rows share a byte
            units.append(Unit(len(units), tensor, piece, number, whole))
            number += -(-piece.rows // whole)
            dtypes = tuple(p.info.dtype for p in stored.parts)
            key = (stored.encoding.name, stored.shape, stored.scaling, dtypes, piece.start, piece.rows, whole)
            if key not in sizes:
                sizes[key] = max(buffer_size(_reads(units[-1], start)) for start in range(0, piece.rows, whole))
            rows = min(whole, piece.rows)
            values, raw = max(values, rows * columns), max(raw, sizes[key])
            out = max(out, (columns if piece.transposed else rows) * row_out)
    by_shard: list[list[Unit]] = [[] for _ in range(shards)]
    for unit in units:
        by_shard[unit.piece.shard].append(unit)
    return Work(tuple(units), tuple(map(tuple, by_shard)), number, values, raw, out, compare, streamed)


def _reads(unit: Unit, start: int) -> tuple[Read, ...]:
    """What the item whose rows begin at `start` of the piece needs."""
    stored, rows = unit.piece.stored, min(unit.step, unit.piece.rows - start)
    return stored.encoding.reads(stored, unit.piece.start + start, rows)


def _items(unit: Unit, streamed: bool) -> Iterator[Item]:
    piece = unit.piece
    here = [p.info for p in piece.stored.parts[1:] if p.shard == piece.shard] if streamed else []
    ready = max((i.offset + i.nbytes for i in here), default=0)  # where the pass has met all companions
    for n, start in enumerate(range(0, piece.rows, unit.step)):
        codes = _reads(unit, start)[0]
        offset, nbytes = piece.info.offset + codes.start, codes.nbytes
        if codes.count > 1 or ready > offset:
            end = offset + (codes.count - 1) * codes.stride + codes.nbytes
            offset, nbytes = max(ready, end), 0
        yield Item(
            unit.first_item + n, unit.tensor, piece, unit.number, piece.start + start, offset, nbytes,
            min(unit.step, piece.rows - start), piece.at + start * piece.step,
        )  # fmt: skip
