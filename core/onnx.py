"""An ONNX graph in its folder: where every array lies, found and checked without reading any of them.

Layout of external data: onnx.proto's TensorProto (location, offset and length in a file beside the graph).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import brief, wrong
from .files import size_of, there
from .wire import read_message

GRAPH = "model.onnx"
MAX_GRAPH = 2**31 - 1  # bytes; protobuf's own limit
MAX_DIMS = 64
FOUR_BITS = ("uint4", "int4", "float4e2m1")
# operator → which inputs are a quantised weight, its scales and its zero points (ContribOperators.md)
QUANTISED = {
    "MatMulNBits": ((1, 2, 3),),
    "GatherBlockQuantized": ((0, 2, 3),),
    "QMoE": ((2, 3, 11), (5, 6, 12), (8, 9, 13)),
}
EXPERTS = ("QMoE", "MoE")
PASSED_ON = ("Cast", "Reshape", "Identity")


@dataclass(frozen=True, slots=True)
class Array:
    """One initializer: `offset` counts from the start of its file; `path` is None for one inside the graph file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path | None
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Graph:
    """`file` is the graph itself, `model` the onnx package's ModelProto; `files` are the data files' sizes."""

    file: Path
    model: Any
    arrays: dict[str, Array]
    files: dict[Path, int]

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.file.parent

    @property
    def nbytes(self) -> int:
        """Of the graph and its data files."""
        return self.file.stat().st_size + sum(self.files.values())

    @property
    def logits(self) -> int:
        """Size of the vocabulary by the output `logits`, 0 where the graph does not say."""
        dims = (o.type.tensor_type.shape.dim for o in self.model.graph.output if o.name == "logits")
        return next((d[-1].dim_value for d in dims if d), 0)

    @property
    def experts(self) -> bool:
        """Whether it holds a mixture of experts."""
        return any(n.op_type in EXPERTS for n in self.model.graph.node)


def graph_file(path: Path) -> Path:
    """The graph of a folder; a graph is its own."""
    return path / GRAPH if path.is_dir() else path


def home(path: Path) -> Path:
    """Where the tokenizer of a folder or a graph lies: beside the graph, or above its folder, as in transformers.js."""
    if path.is_dir():
        return path
    above = path.absolute().parents[1:2]
    return next((p for p in (path.parent, *above) if there(p / "tokenizer.json")), path.parent)


def read_graph(model: Path) -> Graph:
    """Read a folder's graph, or a graph by its own name; the bytes of every array are checked to lie inside a file of
    its folder.
    """
    import onnx

    path = graph_file(model)
    if not there(path):
        raise wrong(path, "an ONNX graph", "no such file")
    if (size := size_of(path)) > MAX_GRAPH:
        raise wrong(path, f"at most {MAX_GRAPH} bytes", size)
    proto = onnx.ModelProto()
    read_message(path, proto)
    if not proto.graph.node:
        raise wrong(path, "an ONNX graph", "no nodes in it")
    arrays: dict[str, Array] = {}
    files: dict[Path, int] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            raise wrong(f"{path}: {brief(tensor.name)}", "each initializer once", "it twice")
        array = _array(path, tensor, onnx)
        arrays[tensor.name] = array
        if array.path is not None:
            files.setdefault(array.path, array.path.stat().st_size)
            if array.offset + array.nbytes > files[array.path]:
                raise wrong(
                    f"{path}: {brief(array.name)}", f"{array.nbytes} bytes from {array.offset}",
                    f"a file {array.path.name} of {files[array.path]} bytes",
                )  # fmt: skip
    return Graph(path, proto, arrays, files)


def _array(graph: Path, tensor: Any, onnx: Any) -> Array:
    folder, where, shape = graph.parent, f"{graph}: {brief(tensor.name)}", tuple(tensor.dims)
    known = onnx.TensorProto.DataType
    if tensor.data_type not in known.values() or tensor.data_type == 0:
        raise wrong(where, "a number type of ONNX", tensor.data_type)
    dtype = known.Name(tensor.data_type).lower()
    if len(shape) > MAX_DIMS or any(n < 0 for n in shape):
        raise wrong(where, f"a shape of at most {MAX_DIMS} dimensions", brief(list(shape)))
    bits = 4 if dtype in FOUR_BITS else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    nbytes = (math.prod(shape) * bits + 7) // 8
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return Array(tensor.name, dtype, shape, None, 0, nbytes)
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    path = folder / location
    inside = location and "\0" not in location and not Path(location).is_absolute() and ".." not in Path(location).parts
    if not inside or not any(Path(os.path.realpath(path)).is_relative_to(home) for home in _homes(folder)):
        raise wrong(where, "external data inside the folder", brief(location) or "no location")
    if not there(path):
        raise wrong(where, f"the data file {brief(location)} in the folder", "no such file")
    size_of(path)
    offset, length = (_number(entries.get(k, d), f"{where}: {k}") for k, d in (("offset", 0), ("length", nbytes)))
    if length != nbytes:
        raise wrong(f"{where}: length", f"{nbytes} bytes for {dtype} {brief(list(shape))}", length)
    return Array(tensor.name, dtype, shape, path, offset, nbytes)


def _homes(folder: Path) -> list[Path]:
    """Where links may lead: into the folder itself, or into `blobs` of the hub cache whose snapshot it lies in."""
    real = Path(os.path.realpath(folder))
    blobs = next((p.parent / "blobs" for p in real.parents if p.name == "snapshots"), None)
    return [real] if blobs is None or blobs.is_symlink() else [real, blobs]


def _number(text: object, where: str) -> int:
    digits = str(text)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise wrong(where, "a number of bytes", brief(digits))
    return int(digits)


def roles(graph: Graph) -> tuple[dict[str, tuple[int, int]], set[str], set[str]]:
    """Arrays of quantised weights → (bits, block size); their scales and zero points; rotary tables."""
    nodes = graph.model.graph.node
    before = {n.output[0]: n.input[0] for n in nodes if n.op_type in PASSED_ON and n.input and n.output}

    def origin(name: str) -> str:
        for _ in range(len(PASSED_ON)):
            name = before.get(name, name)
        return name

    weights: dict[str, tuple[int, int]] = {}
    beside: set[str] = set()
    tables: set[str] = set()
    for node in nodes:
        inputs = [origin(name) for name in node.input]
        if node.op_type == "GroupQueryAttention":
            tables.update(inputs[7:9])
        options = {a.name: a.i for a in node.attribute}
        bits = options.get("bits", options.get("expert_weight_bits", 4))
        for value, *more in QUANTISED.get(node.op_type, ()):
            if value < len(inputs) and inputs[value] in graph.arrays:
                weights[inputs[value]] = (bits, options.get("block_size", 0))
                beside.update(inputs[n] for n in more if n < len(inputs))
    return weights, beside & graph.arrays.keys(), tables & graph.arrays.keys()


def slow_products(graph: Graph) -> list[str]:
    """Names of products of 8- or 2-bit weights at accuracy level 0, where ONNX Runtime has no kernel of its own.

    Such a product was about 300 times slower than at level 4.
    """
    found, graphs = [], [graph.model.graph]
    for node in (n for g in graphs for n in g.node):
        options = {a.name: a.i for a in node.attribute}
        graphs += [a.g for a in node.attribute if a.HasField("g")]  # branches and loops
        if node.op_type == "MatMulNBits" and options.get("bits", 4) != 4 and not options.get("accuracy_level", 0):
            found.append(node.name or node.output[0])
    return found


def refuse_slow(graph: Graph) -> None:
    """Raise InputError for a graph with such products."""
    if slow := slow_products(graph):
        raise wrong(
            f"{graph.file}: {brief(slow[0])}", "accuracy level 4 for weights of 8 or 2 bits",
            "0, about 300 times slower", "export it again at level 4",
        )  # fmt: skip


def unique(arrays: Iterable[Array]) -> list[Array]:
    """Without those that share another one's bytes, as a tied head does."""
    found = {(a.path, a.offset) if a.path else a.name: a for a in reversed(list(arrays))}
    return list(found.values())[::-1]


def bits_per_weight(graph: Graph) -> float:
    """Bytes of the weights, their scales and zero points, in bits for each weight."""
    weights, beside, tables = roles(graph)
    nbytes = values = 0
    for a in unique(a for a in graph.arrays.values() if a.path is not None and a.name not in tables):
        nbytes += a.nbytes
        if a.name in weights:
            values += 8 * a.nbytes // max(1, weights[a.name][0])
        elif a.name not in beside:
            values += math.prod(a.shape)
    return 8 * nbytes / values if values else 0.0
