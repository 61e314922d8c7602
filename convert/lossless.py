"""Which output types hold the same numbers as a stored weight, and how the codes get there unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import wrong
from sampan.quantize import NumberType, TensorType, pack_integers
from sampan.quantize.blocked import BlockType

from .binding import Piece
from .encoding import Buffer, StoredTensor
from .plan import Plan, PlannedTensor

Repack = Callable[[Sequence[Buffer], int, int, Buffer], None]
"""(buffers, start, rows, out): the stored bytes of some rows → the same numbers in the output type."""


def repacker(stored: StoredTensor, kind: TensorType) -> Repack | None:
    """How `stored` goes into `kind` code by code, or None where that cannot be.

    Exact but for scales that the type's float16 does not hold: those become the nearest one.
    """
    encoding = stored.encoding
    if isinstance(kind, NumberType) and kind.name in encoding.repack:
        return partial(encoding.repack[kind.name], stored)
    group = stored.scaling.columns or stored.columns
    if encoding.integers is None or stored.scaling.act_order or not _takes_integers(kind):
        return None
    zeros = not (isinstance(kind, BlockType) and kind.zero_points)
    if group % kind.block or (zeros and not stored.scaling.symmetric):
        return None
    integers = encoding.integers

    def repack(buffers: Sequence[Buffer], start: int, rows: int, out: Buffer) -> None:
        codes, scales, zeros = integers(stored, buffers, start, rows)
        repeat = stored.columns // kind.block // scales.shape[1]
        pack_integers(kind, codes, _repeat(scales, repeat), None if zeros is None else _repeat(zeros, repeat), out)

    return repack


def _takes_integers(kind: TensorType) -> bool:
    return kind.name == "q4_0" if isinstance(kind, NumberType) else isinstance(kind, BlockType) and kind.width == 4


def _repeat(values: NDArray[Any], times: int) -> NDArray[Any]:
    return values if times == 1 else np.repeat(values, times, axis=1)


def exact(piece: Piece, kind: TensorType) -> bool:
    """Whether `kind` holds the numbers of a piece, but for scales that float16 does not hold."""
    if isinstance(kind, NumberType) and (kind.name == "f32" or (not piece.maps and kind.name == piece.stored.label)):
        return True
    return piece.whole_rows and repacker(piece.stored, kind) is not None


def nearest(plan: Plan) -> dict[tuple[str, str], list[PlannedTensor]]:
    """(stored as, output type) → the tensors that change on the way."""
    found: dict[tuple[str, str], list[PlannedTensor]] = {}
    for tensor in plan.tensors:
        for label in {p.stored.label for p in tensor.bound.pieces if not exact(p, tensor.type)}:
            found.setdefault((label, tensor.type.name), []).append(tensor)
    return found


def sources(tensors: Iterable[PlannedTensor]) -> dict[str, int]:
    """Stored as → how many output tensors are made of it."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        for label in dict.fromkeys(p.stored.label for p in tensor.bound.pieces):
            counts[label] = counts.get(label, 0) + 1
    return counts


def check_lossless(plan: Plan) -> None:
    """Refuse a plan that changes numbers, in one line with the first of them."""
    for (label, kind), tensors in nearest(plan).items():
        other = "f32" if plan.scheme.startswith("native") else "native"
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        found = f"{kind} for {tensors[0].bound.spec.name}{more}"
        raise wrong("--lossless", f"a type that holds {label} exactly", found, f"try --quant {other}")
