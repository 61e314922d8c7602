"""The weights of a graph: number types by the scheme, arrays laid out in the data file, rows from the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sampan.errors import wrong
from sampan.quantize import Scheme, TensorType, choose_name, tensor_type
from sampan.quantize.blocked import BLOCK_TYPES, BlockType
from sampan.registry import load_all

from ...architecture import EMBEDDING, Architecture
from ...binding import Binding, Bound
from ...plan import PlannedTensor, Slice, facts
from .graph import FLOAT, FLOAT16, UINT8, Edge, Graph

PLAIN = {"f32": FLOAT, "f16": FLOAT16}
FALLBACK = {"q6_k": "q8_0"}  # a type of llama.cpp's schemes that MatMulNBits cannot hold → the next larger
PAGE = 4096  # bytes; arrays of a page and more start at one, so that they can be mapped


class Weights:
    """Gives every weight its type and place once; asked again for the same tensors, by whatever graph, it gives it the
    same arrays.
    """

    def __init__(self, arch: Architecture, binding: Binding, scheme_name: str, scheme: Scheme) -> None:
        self.tensors, self.end = list[PlannedTensor](), 0
        self.tables: list[NDArray[np.float32]] = []
        self._arch, self._scheme, self._scheme_name = arch, scheme, scheme_name
        self._bound = {b.spec.name: b for b in binding.tensors}
        self._placed: dict[tuple[str, ...], tuple[int, ...]] = {}  # names → offsets of their arrays

    def rows_of(self, name: str) -> int:
        return self._bound[name].rows

    def columns_of(self, name: str) -> int:
        return self._bound[name].columns

    def kind(self, name: str) -> TensorType:
        """The number type of a canonical tensor."""
        bound = self._bound[name]
        kind = held_type(choose_name(self._scheme, facts(self._arch, bound)), self._scheme_name)
        # a row of an embedding or an expert cannot be padded to whole blocks
        whole = name.endswith("_exps.weight") or name == EMBEDDING
        return tensor_type("f32") if whole and bound.columns % kind.block else kind

    def table(self, graph: Graph, name: str, values: NDArray[np.float32]) -> Edge:
        """Computed values, written in front of the weights."""
        if self.tensors:
            raise AssertionError("tables come first")
        self.tables.append(values)
        edge = graph.external(name, FLOAT, values.shape, self.end)
        self.end += values.nbytes
        return edge

    def vector(self, graph: Graph, path: str, *names: str) -> Edge:
        """float32 [n] of one or several vectors, one after the other."""
        if names not in self._placed:
            columns = [_as_column(self._bound[n]) for n in names]
            bound, slices = _stack(columns, f"{path}/{names[0]}", False)
            vectors = tuple(replace(s, shape=s.shape[:1]) for s in slices)
            self._place(path, names, tensor_type("f32"), (bound, vectors))
        (offset,) = self._placed[names]
        return graph.external(
            f"{path}/{names[0].rpartition('.')[2]}", FLOAT, (sum(self._bound[n].columns for n in names),), offset
        )

    def matrix(self, graph: Graph, path: str, names: Sequence[str], kind: TensorType) -> tuple[Edge, ...]:
        """The arrays of matrices stacked by rows: [rows, columns] where plain, else as MatMulNBits takes them."""
        rows = sum(self._bound[n].rows for n in names)
        return self._arrays(graph, path, names, kind, (rows, self._bound[names[0]].columns))

    def rows(self, graph: Graph, path: str, name: str, kind: TensorType) -> tuple[Edge, ...]:
        """The same arrays as GatherBlockQuantized takes them: packed values of a row in one dimension."""
        bound = self._bound[name]
        return self._arrays(graph, path, (name,), kind, (bound.rows, bound.columns), flat=True)

    def kernel(self, graph: Graph, path: str, names: Sequence[str]) -> Edge:
        """float32 [channels, 1, taps] of a convolution over single channels, those of several tensors in order."""
        shape = (sum(self.rows_of(n) for n in names), 1, self.columns_of(names[0]))
        return self._arrays(graph, path, names, tensor_type("f32"), shape, interleave=False)[0]

    def experts(self, graph: Graph, path: str, names: Sequence[str], kind: TensorType) -> tuple[Edge, ...]:
        """Stacked experts [experts, rows, …]; the rows of several tensors take turns."""
        experts, rows, columns = self._bound[names[0]].spec.shape
        shape = (experts, len(names) * rows, columns)
        return self._arrays(graph, path, names, kind, shape, flat=True, interleave=True)

    def _arrays(
        self,
        graph: Graph,
        path: str,
        names: Sequence[str],
        kind: TensorType,
        shape: tuple[int, ...],
        *,
        flat: bool = False,
        interleave: bool = False,
    ) -> tuple[Edge, ...]:
        """One initializer for each array of the type; scales are cast, which is folded when the graph is loaded."""
        if (key := tuple(names)) not in self._placed:
            parts = [self._bound[n] for n in names]
            self._place(path, key, kind, _stack(parts, f"{path}/weight", interleave))
        offsets = self._placed[key]
        g, lead = graph, shape[:-1]
        if not isinstance(kind, BlockType):
            return (g.external(f"{path}/weight", PLAIN[kind.name], shape, offsets[0]),)
        blocks = kind.blocks(shape[-1])
        packed = [blocks * kind.block * kind.width // 8] if flat else [blocks, kind.block * kind.width // 8]
        values = g.external(f"{path}/weight", UINT8, (*lead, *packed), offsets[0])
        stored = g.external(f"{path}/scales", FLOAT16, (*lead, blocks), offsets[1])
        scales = g.node("Cast", f"{path}/scales", [stored], stored.shape, to=FLOAT)
        if not kind.zero_points:
            return values, scales
        return (
            values,
            scales,
            g.external(f"{path}/zero_points", UINT8, (*lead, kind.part_bytes(shape[-1])[2]), offsets[2]),
        )

    def _place(
        self, path: str, names: tuple[str, ...], kind: TensorType, stack: tuple[Bound, tuple[Slice, ...]]
    ) -> None:
        bound, slices = stack
        offsets = []
        for row in kind.part_bytes(bound.columns):
            nbytes = bound.rows * row
            step = PAGE if nbytes >= PAGE else 64
            offsets.append(-(-self.end // step) * step)
            self.end = offsets[-1] + nbytes
        self.tensors.append(PlannedTensor(bound, kind, 0, tuple(offsets), slices))
        self._placed[names] = tuple(offsets)


def held_type(name: str, scheme: str) -> TensorType:
    """The type that a scheme chose, or the next larger one that ONNX Runtime's operators read."""
    name = FALLBACK.get(name, name)
    if not _holds(name):
        known = [n for n, s in load_all("sampan.quantize.schemes", "SCHEME").items() if holds(s)]
        raise wrong("--quant", f"a scheme that ONNX can hold: {', '.join(known)}", scheme)
    return tensor_type(name)


def holds(scheme: Scheme) -> bool:
    """Whether ONNX Runtime's operators read what most of its weights are."""
    return _holds(scheme.default)


def _holds(name: str) -> bool:
    return name in BLOCK_TYPES or name in PLAIN


def _stack(parts: list[Bound], name: str, interleave: bool) -> tuple[Bound, tuple[Slice, ...]]:
    """Several tensors as one, their rows one after the other or taking turns."""
    step, at = (len(parts) if interleave else 1), 0
    pieces, slices = [], []
    for n, part in enumerate(parts):
        first = n if interleave else at
        pieces += [replace(p, at=first + p.at * step, step=p.step * step) for p in part.pieces]
        slices.append(Slice(part.spec.name, part.spec.shape, first, step))
        at += part.rows
    return Bound(replace(parts[0].spec, name=name, shape=(at, parts[0].columns)), tuple(pieces)), tuple(slices)


def _as_column(bound: Bound) -> Bound:
    """A vector as rows of one value, so that vectors stack."""
    n = bound.columns
    pieces = tuple(
        replace(p, stored=replace(p.stored, shape=(n, 1)), start=p.start * n, rows=p.rows * n, at=p.at * n)
        for p in bound.pieces
    )
    return Bound(replace(bound.spec, shape=(n, 1)), pieces)
