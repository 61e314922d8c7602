"""Where the rows of a tensor come from: small expressions that binding evaluates, and fill and audit carry out.

A canonical tensor stands as the checkpoint has it, apart from rows that a checkpoint keeps in another tensor's company
(Source.cut), in several tensors (Stack), or as the argument of a function (Map). What one engine wants otherwise is an
Arrangement of that format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .architecture import Block

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Map:
    """A function of decoded rows, float32 [rows, columns] → the same shape; `name` tells it from others."""

    name: str
    apply: Callable[[Floats], Floats]


def _one_plus(w: Floats) -> Floats:
    return np.add(w, np.float32(1), out=w)


def _minus_exp(w: Floats) -> Floats:
    return np.negative(np.exp(w, out=w), out=w)


def _length_one(w: Floats) -> Floats:
    """torch.nn.functional.normalize of every row, with its smallest length."""
    length = np.sqrt(np.einsum("ij,ij->i", w, w, dtype=np.float64))
    w /= np.maximum(length, 1e-12).astype(np.float32)[:, None]
    return w


ONE_PLUS = Map("1 + w", _one_plus)
MINUS_EXP = Map("-exp(w)", _minus_exp)
LENGTH_ONE = Map("rows of length one", _length_one)


@dataclass(frozen=True, slots=True)
class Cut:
    """Of every `period` rows the `take` rows from `offset`: one head's share, or one half of a fused matrix."""

    offset: int
    take: int
    period: int


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of the checkpoint tensor called `name`, with `{i}` for the layer.

    `{e}` in the name: one tensor for each expert, stacked in order. `cut`: which rows, by the layer's Block; None for
    all. `turned`: its matrices may lie transposed, which their shape tells.
    """

    name: str
    cut: Callable[[Block], Cut] | None = None
    map: Map | None = None
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Rows of several sources, one source after the other; `rows`: how many each gives, by the layer's Block."""

    sources: tuple[Source, ...]
    rows: Callable[[Block], tuple[int, ...]]


Layout = Source | Stack


def inside(prefix: str, new: str, sources: Mapping[str, tuple[Layout, ...]]) -> dict[str, tuple[Layout, ...]]:
    """The same sources, with `new` where names begin with `prefix`."""

    def one(source: Source) -> Source:
        return (
            replace(source, name=new + source.name.removeprefix(prefix)) if source.name.startswith(prefix) else source
        )

    def layout(found: Layout) -> Layout:
        return replace(found, sources=tuple(map(one, found.sources))) if isinstance(found, Stack) else one(found)

    return {name: tuple(map(layout, layouts)) for name, layouts in sources.items()}


@dataclass(frozen=True, slots=True)
class Run:
    """Rows `start` to `start + rows` of a canonical tensor become rows `at`, `at + step`, … of an output tensor.

    `transposed`: they become all columns of output rows from `at` instead.
    """

    start: int
    rows: int
    at: int
    step: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Arrangement:
    """An output tensor made of a canonical one: its shape, and runs that cover its rows once.

    `map`: what happens to the values of each row besides, such as another order of columns.
    """

    shape: tuple[int, ...]
    runs: tuple[Run, ...]
    map: Map | None = None


def turned(shape: tuple[int, ...]) -> Arrangement:
    """Each matrix of [n, rows, columns] transposed."""
    count, rows, columns = shape
    runs = tuple(Run(n * rows, rows, n * columns, transposed=True) for n in range(count))
    return Arrangement((count, columns, rows), runs)


def neighbours(shape: tuple[int, ...], head_dim: int, rotated: int) -> Arrangement:
    """Rows j and j + rotated/2 of every head of `head_dim` rows become its rows 2j and 2j + 1; the rest stays."""
    half, runs = rotated // 2, list[Run]()
    for start in range(0, shape[0], head_dim):
        runs += [Run(start, half, start, 2), Run(start + half, half, start + 1, 2)]
        if rotated < head_dim:
            runs.append(Run(start + rotated, head_dim - rotated, start + rotated))
    return Arrangement(shape, tuple(runs))


def tiled(shape: tuple[int, ...], groups: int, each: int, width: int, first: int = 0) -> Arrangement:
    """From row `first`, `groups` × `each` heads of `width` rows: the n-th of every group stand together."""
    runs = [Run(0, first, 0)] if first else []
    for g in range(groups):
        runs += [Run(first + (g * each + n) * width, width, first + (n * groups + g) * width) for n in range(each)]
    return Arrangement(shape, tuple(runs))


def tiled_columns(shape: tuple[int, ...], groups: int, each: int, width: int) -> Arrangement:
    """The same of columns."""

    def apply(rows: Floats) -> Floats:
        return np.ascontiguousarray(rows.reshape(-1, groups, each, width).swapaxes(1, 2)).reshape(rows.shape)

    return Arrangement(shape, (Run(0, shape[0], 0),), Map(f"columns {groups} × {each} × {width} tiled", apply))
