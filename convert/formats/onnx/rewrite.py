"""A traced float32 graph with its matrices in our number types: the same nodes, MatMul and Gather replaced.

x · W with W [K, N] in external data becomes MatMulNBits, the embedding's Gather GatherBlockQuantized; everything
else stays, byte for byte.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from sampan.errors import InputError, brief, wrong
from sampan.quantize import Scheme, TensorFacts, TensorType, choose_name, encode_rows
from sampan.quantize.blocked import BlockType

from .graph import CONTRIB, DATA_FILE, FLOAT, FLOAT16, UINT8
from .weights import PAGE, held_type

MOST_VALUES = 1 << 22  # of a panel: 16 MB; wider panels are read in longer pieces
COPIED = 1 << 22  # bytes that are copied at once
LAYER = re.compile(r"/(?:layers|h|blocks|block)\.(\d+)/")
# the last part of a node's path → the canonical tensor that schemes have rules for
CANONICAL = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down", "gate": "ffn_gate_inp", "router": "ffn_gate_inp",
    "lm_head": "output",
}  # fmt: skip
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in a graph's external data: bytes from `offset` of `file`."""

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of a stored array: encoded as `type`, or copied where that is None.

    `transposed`: the matrix [rows, columns] that is encoded is stored as [columns, rows]. `offsets`: of each array of
    the type in the new data file.
    """

    name: str
    stored: Stored
    type: TensorType | None
    transposed: bool
    offsets: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.stored.shape[-1] if self.transposed else math.prod(self.stored.shape[:-1])

    @property
    def columns(self) -> int:
        return self.stored.shape[0] if self.transposed else self.stored.shape[-1]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The new graph, its data file's size, and how that is filled."""

    model: bytes
    size: int
    moves: tuple[Move, ...]

    @property
    def matrices(self) -> tuple[Move, ...]:
        return tuple(m for m in self.moves if m.type is not None)

    @property
    def bits_per_weight(self) -> float:
        values = sum(m.rows * m.columns for m in self.matrices)
        return 8 * sum(m.rows * m.type.row_bytes(m.columns) for m in self.matrices if m.type) / max(values, 1)


def rewrite(path: Path, scheme_name: str, scheme: Scheme, accuracy: int = 4) -> Rewritten:
    """Choose a type for every matrix of the graph at `path` and lay the new data file out; reads no weights but a
    head's, to see whether it is the embedding.
    """
    model = onnx.load(path, load_external_data=False)
    return _Rewriter(path, model, scheme_name, scheme, accuracy).run()


class _Rewriter:
    def __init__(self, path: Path, model: Any, scheme_name: str, scheme: Scheme, accuracy: int) -> None:
        self._path, self._model, self._graph = path, model, model.graph
        self._scheme_name, self._scheme, self._accuracy = scheme_name, scheme, accuracy
        self._stored = {i.name: _stored(i, path) for i in self._graph.initializer if _is_external(i)}
        plain = {i.name for i in self._graph.initializer if i.data_type == FLOAT and len(i.dims) == 2}
        self._matrices = plain & self._stored.keys()
        self._moves: dict[str, Move] = {}
        self._new: list[Any] = []  # initializers
        self._end = 0

    def run(self) -> Rewritten:
        nodes = list(self._graph.node)
        layers = [int(m[1]) for n in nodes if (m := LAYER.search(n.name))]
        self._layers = max(layers, default=-1) + 1
        embedding = next((n for n in nodes if _gathers_ids(n) and n.input[0] in self._matrices), None)
        head = next((n for n in nodes if n.op_type == "MatMul" and _is_head(n)), None)
        shared = None
        if embedding is not None and head is not None and self._tied(embedding.input[0], head.input[1]):
            shared = embedding.input[0]
        done: list[Any] = []
        for node in nodes:
            if embedding is not None and node is embedding:
                done += self._gather(node, self._type(EMBEDDING, node.input[0], -1, shared is not None))
            elif node.op_type == "MatMul" and node.input[1] in self._matrices:
                done += self._product(node, shared if node is head else None)
            else:
                done.append(node)
        self._keep({name for node in done for name in node.input})
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(done)
        self._graph.initializer.extend(self._new)
        if all(o.domain != CONTRIB for o in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        moves = tuple(sorted(self._moves.values(), key=lambda m: m.stored.offset))
        return Rewritten(self._model.SerializeToString(deterministic=True), self._end, moves)

    def _type(self, canonical: str, name: str, layer: int, tied: bool) -> TensorType:
        facts = TensorFacts(
            name=canonical, dims=2, columns=self._stored[name].shape[0], layer=layer, layers=self._layers, gqa=1,
            experts=0, tied=tied, wide=False, stored="f32",
        )  # fmt: skip
        kind = held_type(choose_name(self._scheme, facts), self._scheme_name)
        if isinstance(kind, BlockType) and kind.width != 4 and self._accuracy == 0:
            raise wrong("--accuracy-level", "4 for 8-bit weights", f"0, at which {name} would be 300 times slower")
        return kind

    def _tied(self, embedding: str, head: str) -> bool:
        """Whether the head is the embedding, transposed: then both take the same bytes."""
        if head not in self._stored:
            return False
        a, b = (Move(n, self._stored[n], None, t, ()) for n, t in ((embedding, False), (head, True)))
        if (a.rows, a.columns) != (b.rows, b.columns):
            return False
        step = max(1, MOST_VALUES // a.columns)
        spans = [(i, min(i + step, a.rows)) for i in range(0, a.rows, step)]
        with _Files() as files:
            return all(np.array_equal(files.panel(a, *s), files.panel(b, *s)) for s in spans)

    def _gather(self, node: Any, kind: TensorType) -> list[Any]:
        name, path = node.input[0], node.name
        if isinstance(kind, BlockType) and self._stored[name].shape[1] % kind.block:
            return [node]  # a row cannot be padded
        if not isinstance(kind, BlockType):
            return self._plain(node, 0, kind)
        move = self._place(name, kind, False)
        arrays, casts = self._blocks(f"{path}/weight", move, kind, flat=True)
        attributes = {"bits": kind.width, "block_size": kind.block, "gather_axis": 0, "quantize_axis": 1}
        inputs = [arrays[0], node.input[1], *arrays[1:]]
        return [
            *casts,
            helper.make_node("GatherBlockQuantized", inputs, node.output, path, domain=CONTRIB, **attributes),
        ]

    def _product(self, node: Any, shared: str | None) -> list[Any]:
        name, path = node.input[1], node.name
        parts, layer = path.split("/"), LAYER.search(path)
        leaf = "lm_head" if _is_head(node) else parts[-2] if len(parts) > 1 else path
        canonical = f"{CANONICAL.get(leaf, leaf)}.weight"
        kind = self._type(canonical, name, int(layer[1]) if layer else -1, shared is not None)
        if shared is not None and isinstance(placed := self._type(EMBEDDING, shared, -1, True), BlockType):
            kind = placed
        if not isinstance(kind, BlockType):
            return self._plain(node, 1, kind)
        k, n = self._stored[name].shape
        same = shared is not None and shared in self._moves and self._moves[shared].type == kind
        move = self._moves[str(shared)] if same else self._place(name, kind, True)
        arrays, casts = self._blocks(f"{path}/weight", move, kind, flat=False)
        attributes = {
            "K": k, "N": n, "bits": kind.width, "block_size": kind.block, "accuracy_level": self._accuracy
        }  # fmt: skip
        inputs = [node.input[0], *arrays]
        return [*casts, helper.make_node("MatMulNBits", inputs, node.output, path, domain=CONTRIB, **attributes)]

    def _plain(self, node: Any, position: int, kind: TensorType) -> list[Any]:
        """float32 stays; float16 gets a Cast, folded when the graph is loaded."""
        name = node.input[position]
        move = self._place(name, kind, False)
        if kind.name == "f32":
            self._initializer(name, FLOAT, move.stored.shape, move.offsets[0])
            return [node]
        self._initializer(f"{name}/f16", FLOAT16, move.stored.shape, move.offsets[0])
        cast = helper.make_node("Cast", [f"{name}/f16"], [f"{node.name}/f32"], f"{node.name}/Cast", to=FLOAT)
        node.input[position] = f"{node.name}/f32"
        return [cast, node]

    def _place(self, name: str, kind: TensorType | None, transposed: bool) -> Move:
        """Room in the data file; the same array is placed once in a type."""
        move = Move(name, self._stored[name], kind, transposed, ())
        sizes = [move.stored.nbytes] if kind is None else [move.rows * b for b in kind.part_bytes(move.columns)]
        before = self._moves.get(name)
        if before is not None and before.type == kind:
            return before
        offsets = []
        for nbytes in sizes:
            step = PAGE if nbytes >= PAGE else 64
            offsets.append(-(-self._end // step) * step)
            self._end = offsets[-1] + nbytes
        move = replace(move, offsets=tuple(offsets))
        self._moves[name if before is None else f"{name} as {kind.name if kind else 'it is'}"] = move
        return move

    def _blocks(self, name: str, move: Move, kind: BlockType, *, flat: bool) -> tuple[list[str], list[Any]]:
        """Names of values, scales and zero points, and the Cast of the scales."""
        blocks, block = kind.blocks(move.columns), kind.block * kind.width // 8
        packed = (move.rows, blocks * block) if flat else (move.rows, blocks, block)
        self._initializer(name, UINT8, packed, move.offsets[0])
        self._initializer(f"{name}/f16", FLOAT16, (move.rows, blocks), move.offsets[1])
        cast = helper.make_node("Cast", [f"{name}/f16"], [f"{name}/scales"], f"{name}/Cast", to=FLOAT)
        names = [name, f"{name}/scales"]
        if kind.zero_points:
            names.append(f"{name}/zero_points")
            self._initializer(names[-1], UINT8, (move.rows, kind.part_bytes(move.columns)[2]), move.offsets[2])
        return names, [cast]

    def _initializer(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> None:
        if any(i.name == name for i in self._new):
            return
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape, data_location=onnx.TensorProto.EXTERNAL)
        nbytes = math.prod(shape) * helper.tensor_dtype_to_np_dtype(kind).itemsize
        for key, value in (("location", DATA_FILE), ("offset", offset), ("length", nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._new.append(tensor)

    def _keep(self, used: set[str]) -> None:
        """Initializers that some node still names."""
        there = {i.name for i in self._new}
        for old in self._graph.initializer:
            if old.name not in used or old.name in there:
                continue
            if old.name in self._stored:
                (offset,) = self._place(old.name, None, False).offsets
                self._initializer(old.name, old.data_type, tuple(old.dims), offset)
            else:
                self._new.append(old)


def _gathers_ids(node: Any) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[1] == "input_ids" and axis == 0


def _is_head(node: Any) -> bool:
    return "logits" in node.output or bool(re.search(r"/(lm_head|embed_out)/", node.name))


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _stored(tensor: Any, graph: Path) -> Stored:
    """Where an external array lies; a place outside the folder or the file is refused."""
    entry = {e.key: e.value for e in tensor.external_data}
    where, location = f"{graph.name}: {brief(tensor.name)}", entry.get("location", "")
    if location != Path(location).name or not (graph.parent / location).is_file():
        raise wrong(where, f"data in a file beside {graph.name}", brief(location))
    shape = tuple(tensor.dims)
    nbytes = math.prod(shape) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    offset, length = (int(entry.get(k, d)) for k, d in (("offset", "0"), ("length", str(nbytes))))
    file = graph.parent / location
    if length != nbytes or not 0 <= offset <= file.stat().st_size - nbytes:
        raise wrong(where, f"{nbytes} bytes within {location}", f"{length} at byte {offset}")
    return Stored(file, offset, nbytes, shape)


class _Files:
    """Open data files of a graph."""

    def __enter__(self) -> _Files:
        self._fds: dict[Path, int] = {}
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def open(self, path: Path) -> int:
        if path not in self._fds:
            self._fds[path] = os.open(path, os.O_RDONLY)
        return self._fds[path]

    def read(self, stored: Stored, start: int, out: memoryview) -> None:
        got = os.preadv(self.open(stored.file), [out], stored.offset + start)
        if got != len(out):
            raise wrong(stored.file.name, f"{len(out)} bytes at {stored.offset + start}", got)

    def panel(self, move: Move, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` of the matrix, float32 [rows, columns]; columns of the stored one if transposed."""
        if not move.transposed:
            out = np.empty((stop - start, move.columns), np.float32)
            self.read(move.stored, start * move.columns * 4, out.data.cast("B"))
            return out
        raw = np.empty((move.columns, stop - start), np.float32)
        for k in range(move.columns):
            self.read(move.stored, (k * move.rows + start) * 4, raw[k].data.cast("B"))
        return np.ascontiguousarray(raw.T)


Span = tuple[Move, int, int]


def write(
    new: Rewritten, fd: int, jobs: int, max_memory: int, progress: Callable[[int], None], *, allow_zero: bool
) -> None:
    """Fill the data file by `jobs` threads, in panels whose buffers stay within `max_memory` bytes.

    Raises InputError for NaN, Inf, a matrix of zeros, a value that its type cannot hold.
    """
    values = min(MOST_VALUES, max_memory // (jobs * 13))  # stored, turned and encoded at most at once
    alive: set[str] = set()
    with _Files() as files, ThreadPoolExecutor(jobs) as pool:
        for move in new.moves:
            files.open(move.stored.file)
        tasks: dict[Future[bool], Span] = {
            pool.submit(_encode if s[0].type else _copy, files, fd, s): s for s in _spans(new, values)
        }
        try:
            for task in as_completed(tasks):
                move, start, stop = tasks[task]
                if task.result():
                    alive.add(move.name)
                progress((stop - start) * (4 * move.columns if move.type else 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    dead = next((m.name for m in new.matrices if m.name not in alive), None)
    if dead is not None and not allow_zero:
        raise wrong(dead, "values", "nothing but zeros", "--allow-zero converts it all the same")


def source_bytes(new: Rewritten) -> int:
    """Bytes that `write` reads."""
    return sum(m.stored.nbytes for m in new.moves)


def _spans(new: Rewritten, values: int) -> Iterator[Span]:
    for move in new.moves:
        step = COPIED if move.type is None else max(1, values // move.columns)
        total = move.stored.nbytes if move.type is None else move.rows
        for start in range(0, total, step):
            yield move, start, min(total, start + step)


def _copy(files: _Files, fd: int, span: Span) -> bool:
    move, start, stop = span
    data = np.empty(stop - start, np.uint8)
    files.read(move.stored, start, data.data)
    _pwrite(fd, data, move.offsets[0] + start)
    return True


def _encode(files: _Files, fd: int, span: Span) -> bool:
    """Returns whether any value is other than zero."""
    move, start, stop = span
    assert move.type is not None  # noqa: S101 - such moves are copied
    values = files.panel(move, start, stop)
    low, high = float(values.min()), float(values.max())  # NaN wins both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise wrong(move.name, "finite values", f"{low if not np.isfinite(low) else high}")
    encoded = np.empty((stop - start) * move.type.row_bytes(move.columns), np.uint8)
    try:
        encode_rows(move.type, values, encoded)
    except InputError as e:
        raise InputError(f"{move.name}: {e}; choose another --quant") from None
    at = 0
    for offset, row in zip(move.offsets, move.type.part_bytes(move.columns), strict=True):
        _pwrite(fd, encoded[at : at + (stop - start) * row], offset + start * row)
        at += (stop - start) * row
    return low != 0 or high != 0


def _pwrite(fd: int, data: NDArray[np.uint8], position: int) -> None:
    view = data.data
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
