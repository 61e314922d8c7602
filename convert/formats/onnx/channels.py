"""The weights of static graphs: integers with a scale for each row, in a data file for each part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sampan.errors import wrong
from sampan.quantize import Scheme, TensorType, choose_name, tensor_type
from sampan.quantize.channel import BLOCK, CHANNEL_TYPES, ChannelType

from ...architecture import Architecture
from ...binding import Binding, Bound
from ...plan import PlannedTensor, facts
from .graph import FLOAT, INT4, INT8, UINT8, UINT16, Edge, Graph
from .weights import PAGE, PLAIN

CODES = {8: INT8, 16: UINT16, 4: INT4}  # by bits


@dataclass(slots=True)
class DataFile:
    """A file that is being laid out: its number in the plan, its name, its end. It begins with `zeros` bytes of zero:
    all zero points of 4-bit codes are these.
    """

    number: int
    name: str
    zeros: int
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.zeros


class Channels:
    """Gives every weight its type and place once, in the data file that is current; to later graphs the same ones."""

    def __init__(self, arch: Architecture, binding: Binding, scheme: Scheme) -> None:
        self.tensors: list[PlannedTensor] = []
        self._arch, self._scheme = arch, scheme
        self._bound = {b.spec.name: b for b in binding.tensors}
        self._placed: dict[str, tuple[DataFile, tuple[int, ...]]] = {}

    def columns_of(self, name: str) -> int:
        return self._bound[name].columns

    def rows_of(self, name: str) -> int:
        return self._bound[name].rows

    def kind(self, name: str) -> TensorType:
        """By the scheme; vectors have 16 bits where matrices are no floats."""
        chosen = choose_name(self._scheme, facts(self._arch, self._bound[name]))
        if self._scheme.default not in CHANNEL_TYPES:
            return tensor_type(chosen)
        kind = tensor_type("w16" if chosen == "f32" else chosen)
        bound = self._bound[name]
        odd = bound.rows % 2 or any(p.at % 2 or (p.rows % 2 and not p.transposed) for p in bound.pieces)
        if isinstance(kind, ChannelType) and kind.turned and (bound.columns % BLOCK or odd):
            found = f"{bound.rows} × {bound.columns} in {name}"
            raise wrong(
                "--quant", f"blocks of {BLOCK} columns and pairs of rows, for a16w4", found, "try --quant a16w8"
            )
        return kind

    def nbytes(self, name: str) -> int:
        """Of a weight in its data file, without the gaps."""
        bound = self._bound[name]
        return bound.rows * self.kind(name).row_bytes(bound.columns)

    def zeros(self) -> int:
        """Bytes of the zero points of the largest weight of 4 bits."""
        found = [b for b in self._bound.values() if isinstance(k := self.kind(b.spec.name), ChannelType) and k.turned]
        most = max((max(b.rows * b.columns // BLOCK // 2, b.rows) for b in found), default=0)
        return -(-most // PAGE) * PAGE

    def place(self, file: DataFile, name: str, kind: TensorType) -> tuple[DataFile, tuple[int, ...]]:
        """The file and the offsets of a weight's arrays, which get their place if they have none."""
        if name not in self._placed:
            bound, offsets = self._bound[name], []
            for row in kind.part_bytes(bound.columns):
                nbytes = bound.rows * row
                step = PAGE if nbytes >= PAGE else 64
                offsets.append(-(-file.end // step) * step)
                file.end = offsets[-1] + nbytes
            self.tensors.append(PlannedTensor(bound, kind, file.number, tuple(offsets)))
            self._placed[name] = file, tuple(offsets)
        return self._placed[name]

    def array(self, graph: Graph, file: DataFile, path: str, name: str) -> Edge:
        """A weight as float32: a matrix [rows, columns], or [columns, rows] where its type is turned; a vector [n]."""
        bound, kind = self._bound[name], self.kind(name)
        rows, columns = bound.rows, bound.columns
        _, offsets = self.place(file, name, kind)
        vector = len(bound.spec.shape) == 1
        shape = (columns,) if vector else (rows, columns)
        if not isinstance(kind, ChannelType):
            stored = graph.external(f"{path}/weight", PLAIN[kind.name], shape, offsets[0])
            return stored if kind.name == "f32" else graph.node("Cast", f"{path}/weight", [stored], shape, to=FLOAT)
        if kind.turned:
            return self._turned(graph, path, bound, offsets)
        codes = graph.external(f"{path}/weight", CODES[kind.width], shape, offsets[0])
        scale = graph.external(f"{path}/scale", FLOAT, () if vector else (rows,), offsets[1])
        if kind.width == 16:
            zero = graph.scalar("/constants/middle", UINT16, 32768)
            return graph.node("DequantizeLinear", f"{path}/weight", [codes, scale, zero], shape)
        return graph.node("DequantizeLinear", f"{path}/weight", [codes, scale], shape, axis=0)

    def _turned(self, graph: Graph, path: str, bound: Bound, offsets: tuple[int, ...]) -> Edge:
        """Codes whose scales are whole numbers times the scale of a row. Without zero points the compiler takes the
        codes for 8 bits (lpbqmatmul_fusion.cc of ONNX Runtime's QNN provider).
        """
        rows, columns = bound.rows, bound.columns
        blocks = (columns // BLOCK, rows)
        codes = graph.external(f"{path}/weight", INT4, (columns, rows), offsets[0])
        whole = graph.external(f"{path}/blocks", UINT8, blocks, offsets[1])
        scale = graph.external(f"{path}/scale", FLOAT, (rows,), offsets[2])
        zero = graph.external(f"{path}/zero", INT4, blocks, 0)
        no = graph.external(f"{path}/blocks/zero", UINT8, (rows,), 0)
        by_block = graph.node("DequantizeLinear", f"{path}/blocks", [whole, scale, no], blocks, axis=1)
        return graph.node(
            "DequantizeLinear", f"{path}/weight", [codes, by_block, zero], (columns, rows), axis=0, block_size=BLOCK
        )


def by_layer(arch: Architecture, binding: Binding) -> Mapping[int, list[str]]:
    """Layer → its weights; -1: what follows the last layer. The embedding is in neither."""
    found: dict[int, list[str]] = {i: [] for i in (*range(len(arch.blocks)), -1)}
    for b in binding.tensors:
        found[b.spec.layer].append(b.spec.name)
    return found
