"""Cut a plan into work items whose buffers stay within a memory bound, in the order of the source files."""

from __future__ import annotations

from dataclasses import dataclass

from sampan.errors import wrong

from .binding import Piece
from .encoding import buffer_size
from .plan import Plan, PlannedTensor

CHUNK_VALUES = 1 << 20  # values in one work item: 4 MB as float32, which stays in the cache


@dataclass(frozen=True, slots=True)
class Item:
    """Some rows of one piece: `at` is the first row in the output tensor.

    `offset`, `nbytes`: what the pass over the shard hands on. Codes that do not lie together (transposed weights) are
    read by the worker when the pass is behind them: then `nbytes` is 0.
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
class Work:
    """All items by shard, in file order; `values`, `raw_bytes` and `out_bytes` are those of the largest item.

    `compare`: what was written is decoded again and compared with its source.
    """

    by_shard: tuple[tuple[Item, ...], ...]
    units: tuple[tuple[PlannedTensor, Piece], ...]
    values: int
    raw_bytes: int
    out_bytes: int
    compare: bool

    def buffers(self, jobs: int) -> int:
        """Bytes of all row buffers with `jobs` workers."""
        rows = 8 if self.compare else 4
        return jobs * (rows * self.values + self.out_bytes) + pool_size(jobs) * self.raw_bytes


def pool_size(jobs: int) -> int:
    """Raw buffers: one in each worker's hands, two on the way."""
    return jobs + 2


def cut(plan: Plan, shards: int, jobs: int, max_memory: int, *, compare: bool = False) -> Work:
    """Cut the plan into items whose buffers stay within `max_memory` bytes (a row is never cut)."""
    chunk, one_row = CHUNK_VALUES, max(t.bound.columns for t in plan.tensors)
    work = _cut(plan, shards, chunk, compare)
    while work.buffers(jobs) > max_memory and chunk > one_row:
        chunk //= 2
        work = _cut(plan, shards, chunk, compare)
    if work.buffers(jobs) > max_memory:
        raise wrong(
            "--max-memory",
            f"at least {work.buffers(jobs)} bytes for {jobs} jobs",
            max_memory,
            "or fewer --jobs",
        )
    return work


def _cut(plan: Plan, shards: int, chunk: int, compare: bool) -> Work:
    by_shard: list[list[Item]] = [[] for _ in range(shards)]
    units: list[tuple[PlannedTensor, Piece]] = []
    number = values = raw = out = 0
    for tensor in plan.tensors:
        row_out = tensor.type.row_bytes(tensor.bound.columns)
        for piece in tensor.bound.pieces:
            columns = tensor.bound.stored_columns(piece)
            step = max(1, chunk // columns)
            whole = piece.rows if piece.transposed else step // piece.stored.step * piece.stored.step or step
            for start in range(0, piece.rows, whole):
                rows = min(whole, piece.rows - start)
                reads = piece.stored.encoding.reads(piece.stored, piece.start + start, rows)
                together = reads[0].count == 1
                offset = piece.info.offset + (reads[0].start if together else piece.info.nbytes)
                by_shard[piece.shard].append(
                    Item(
                        number,
                        tensor,
                        piece,
                        len(units),
                        piece.start + start,
                        offset,
                        reads[0].nbytes if together else 0,
                        rows,
                        piece.at + start * piece.step,
                    )
                )
                number += 1
                values, raw = max(values, rows * columns), max(raw, buffer_size(reads))
                out = max(out, (columns if piece.transposed else rows) * row_out)
            units.append((tensor, piece))
    ordered = tuple(tuple(sorted(items, key=lambda i: i.offset)) for items in by_shard)
    return Work(ordered, tuple(units), values, raw, out, compare)
