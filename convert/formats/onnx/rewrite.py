"""A traced float32 graph with its matrices in our number types: the same nodes, MatMul and Gather replaced.

x · W with W [K, N] in external data becomes MatMulNBits, the embedding's Gather GatherBlockQuantized; everything
else stays, byte for byte.
"""

from __future__ import annotations

import hashlib
import math
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from sampan.checkpoint import Shard
from sampan.errors import brief, wrong
from sampan.quantize import Scheme, TensorFacts, TensorType, choose_name, tensor_type
from sampan.quantize.blocked import BlockType
from sampan.safetensors import TensorInfo

from ...architecture import EMBEDDING, TensorSpec
from ...binding import Bound, Piece
from ...encoding import Part, StoredTensor, buffer_size, read_parts
from ...plan import PlannedTensor
from ...storage import plain
from .graph import CONTRIB, DATA_FILE, FLOAT, FLOAT16, UINT8
from .weights import PAGE, held_type

MOST_VALUES = 1 << 22  # that are compared at once
MOST_INSIDE = 1 << 26  # bytes of one array that is copied into the graph
LAYER = re.compile(r"/(?:layers|h|blocks|block)\.(\d+)/")
# the last part of a node's path → the canonical tensor that schemes have rules for
CANONICAL = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down", "gate": "ffn_gate_inp", "router": "ffn_gate_inp",
    "lm_head": "output",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in a graph's external data: bytes from `offset` of `file`."""

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The new graph, and a plan of its data file: the size, the tensors, and the files that they come from."""

    model: bytes
    size: int
    tensors: tuple[PlannedTensor, ...]
    shards: tuple[Shard, ...]

    @property
    def matrices(self) -> tuple[PlannedTensor, ...]:
        """Without what is neither a matrix of a product nor an embedding."""
        return tuple(t for t in self.tensors if not t.bound.spec.may_be_zero)

    @property
    def bits_per_weight(self) -> float:
        values = sum(t.bound.rows * t.bound.columns for t in self.matrices)
        return 8 * sum(t.nbytes for t in self.matrices) / max(values, 1)


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
        self._placed: dict[tuple[str, str], PlannedTensor] = {}  # by array and type
        self._files = sorted({s.file for s in self._stored.values()})
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
        model = self._model.SerializeToString(deterministic=True)
        return Rewritten(model, self._end, tuple(self._placed.values()), tuple(map(self._shard, self._files)))

    def _shard(self, file: Path) -> Shard:
        """A data file of the graph as the pass over shards reads it."""
        tensors = {n: self._part(n).info for n, s in self._stored.items() if s.file == file}
        layout = hashlib.sha256(repr(sorted(tensors.items())).encode()).hexdigest()
        return Shard(file.name, file, file.stat().st_size, layout, None, tensors)

    def _part(self, name: str) -> Part:
        s = self._stored[name]
        return Part(self._files.index(s.file), TensorInfo(name, "F32", s.shape, s.offset, s.nbytes))

    def _source(self, name: str, transposed: bool) -> StoredTensor:
        stored = StoredTensor(name, self._stored[name].shape or (1,), plain.ENCODING, (self._part(name),))
        return plain.turned(stored, name) if transposed else stored

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
        a, b = self._source(embedding, False), self._source(head, True)
        if a.shape != b.shape:
            return False
        step = max(1, MOST_VALUES // a.columns)
        with ExitStack() as opened:
            files = {n: opened.enter_context(f.open("rb")).fileno() for n, f in enumerate(self._files)}
            spans = ((start, min(step, a.shape[0] - start)) for start in range(0, a.shape[0], step))
            return all(np.array_equal(_values(a, *span, files), _values(b, *span, files)) for span in spans)

    def _gather(self, node: Any, kind: TensorType) -> list[Any]:
        name, path = node.input[0], node.name
        if isinstance(kind, BlockType) and self._stored[name].shape[1] % kind.block:
            return [node]  # a row cannot be padded
        if not isinstance(kind, BlockType):
            return self._plain(node, 0, kind)
        placed = self._place(name, kind, False)
        arrays, casts = self._blocks(f"{path}/weight", placed, kind, flat=True)
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
        twin = self._placed.get((shared or "", kind.name))
        arrays, casts = self._blocks(f"{path}/weight", twin or self._place(name, kind, True), kind, flat=False)
        attributes = {
            "K": k, "N": n, "bits": kind.width, "block_size": kind.block, "accuracy_level": self._accuracy
        }  # fmt: skip
        inputs = [node.input[0], *arrays]
        return [*casts, helper.make_node("MatMulNBits", inputs, node.output, path, domain=CONTRIB, **attributes)]

    def _plain(self, node: Any, position: int, kind: TensorType) -> list[Any]:
        """float32 stays; float16 gets a Cast, folded when the graph is loaded."""
        name = node.input[position]
        shape, (offset,) = self._stored[name].shape, self._place(name, kind, False).offsets
        if kind.name == "f32":
            self._initializer(name, FLOAT, shape, offset)
            return [node]
        self._initializer(f"{name}/f16", FLOAT16, shape, offset)
        cast = helper.make_node("Cast", [f"{name}/f16"], [f"{node.name}/f32"], f"{node.name}/Cast", to=FLOAT)
        node.input[position] = f"{node.name}/f32"
        return [cast, node]

    def _place(self, name: str, kind: TensorType, transposed: bool, *, aside: bool = False) -> PlannedTensor:
        """Room in the data file; the same array is placed once in a type. `aside`: it is no matrix."""
        if (name, kind.name) in self._placed:
            return self._placed[name, kind.name]
        stored = self._source(name, transposed)
        rows = math.prod(stored.shape[:-1])
        spec = TensorSpec(name, (rows, stored.columns), may_be_zero=aside)
        offsets = []
        for row in kind.part_bytes(stored.columns):
            step = PAGE if rows * row >= PAGE else 64
            offsets.append(-(-self._end // step) * step)
            self._end = offsets[-1] + rows * row
        placed = PlannedTensor(Bound(spec, (Piece(stored, 0, rows, 0),)), kind, 0, tuple(offsets))
        self._placed[name, kind.name] = placed
        return placed

    def _blocks(self, name: str, placed: PlannedTensor, kind: BlockType, *, flat: bool) -> tuple[list[str], list[Any]]:
        """Names of values, scales and zero points, and the Cast of the scales."""
        rows, columns, offsets = placed.bound.rows, placed.bound.columns, placed.offsets
        blocks, block = kind.blocks(columns), kind.block * kind.width // 8
        packed = (rows, blocks * block) if flat else (rows, blocks, block)
        self._initializer(name, UINT8, packed, offsets[0])
        self._initializer(f"{name}/f16", FLOAT16, (rows, blocks), offsets[1])
        cast = helper.make_node("Cast", [f"{name}/f16"], [f"{name}/scales"], f"{name}/Cast", to=FLOAT)
        names = [name, f"{name}/scales"]
        if kind.zero_points:
            names.append(f"{name}/zero_points")
            self._initializer(names[-1], UINT8, (rows, kind.part_bytes(columns)[2]), offsets[2])
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
            if old.name not in self._stored:
                self._new.append(old)
            elif old.data_type == FLOAT:
                (offset,) = self._place(old.name, tensor_type("f32"), False, aside=True).offsets
                self._initializer(old.name, FLOAT, tuple(old.dims), offset)
            else:
                self._new.append(self._inside(old))

    def _inside(self, old: Any) -> Any:
        """An array of another type than float32, in the graph file."""
        stored = self._stored[old.name]
        if stored.nbytes > MOST_INSIDE:
            where = f"{self._path.name}: {brief(old.name)}"
            raise wrong(where, f"at most {MOST_INSIDE} bytes of other numbers than float32", stored.nbytes)
        with stored.file.open("rb") as f:
            f.seek(stored.offset)
            data = f.read(stored.nbytes)
        return onnx.TensorProto(name=old.name, data_type=old.data_type, dims=old.dims, raw_data=data)


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


def _values(stored: StoredTensor, start: int, rows: int, files: dict[int, int]) -> NDArray[np.float32]:
    """Float32 [rows, columns]."""
    reads = stored.encoding.reads(stored, start, rows)
    buffers = read_parts(stored, reads, files, np.empty(buffer_size(reads), np.uint8))
    out = np.empty((rows, stored.columns), np.float32)
    stored.encoding.decode(stored, buffers, start, out)
    return out
