"""A small writer of ONNX graphs: every edge has a name, a type and a shape; weights lie in an external file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 23  # the first with RMSNormalization
IR_VERSIONS = {19: 9, 23: 11}  # of an opset's time
CONTRIB = "com.microsoft"
DATA_FILE = "model.onnx.data"
FLOAT, FLOAT16, INT64, INT32, INT16, INT8, UINT8, UINT16, INT4 = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.INT4,
)  # fmt: skip

Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """One value of the graph: `type` is ONNX's number of its element type, names in `shape` are dynamic sizes."""

    name: str
    type: int
    shape: Shape


class Graph:
    """Nodes in order of computation. A node's name is its path, such as `/layers.3/attn/q_proj/MatMulNBits`."""

    def __init__(self, data_file: str = DATA_FILE, opset: int = OPSET) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.edges: list[Edge] = []  # that nodes give, without the outputs
        self.inputs: list[Edge] = []
        self.outputs: list[Edge] = []
        self.data_file = data_file

    def input(self, name: str, kind: int, shape: Shape) -> Edge:
        edge = Edge(name, kind, shape)
        self.inputs.append(edge)
        return edge

    def output(self, name: str, kind: int, shape: Shape) -> Edge:
        """Declare an output; a node must name it."""
        edge = Edge(name, kind, shape)
        self.outputs.append(edge)
        return edge

    def node(
        self,
        op: str,
        path: str,
        inputs: Sequence[Edge | None],
        shape: Shape,
        kind: int = FLOAT,
        *,
        domain: str = "",
        more: Sequence[Edge | None] = (),
        out: Edge | None = None,
        **attributes: Any,
    ) -> Edge:
        """Add a node and return its first output. `more`: its further outputs; `out`: an edge to write to."""
        name = f"{path}/{op}"
        first = out or Edge(f"{name}/output_0", kind, shape)
        outputs = [first, *more]
        self.edges += [e for e in outputs if e is not None and e not in self.outputs]
        self.nodes.append(
            helper.make_node(
                op, [e.name if e else "" for e in inputs], [e.name if e else "" for e in outputs], name, domain=domain,
                **attributes,
            )
        )  # fmt: skip
        return first

    def copy(self, node: onnx.NodeProto, outputs: Sequence[Edge], inputs: Sequence[str] | None = None) -> None:
        """Add another graph's node, with these outputs, and with other inputs."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.output[:] = [e.name for e in outputs]
        if inputs is not None:
            made.input[:] = inputs
        self.edges += outputs
        self.nodes.append(made)

    def constant(self, name: str, values: NDArray[Any]) -> Edge:
        """A small tensor inside the graph file; the same name is written once."""
        edge = Edge(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        self.initializers.setdefault(name, numpy_helper.from_array(values, name))
        return edge

    def scalar(self, name: str, kind: int, value: float) -> Edge:
        """One number of ONNX's type `kind`, in as many bytes whatever its value."""
        return self.constant(name, np.array(value, helper.tensor_dtype_to_np_dtype(kind)))

    def ints(self, *values: int) -> Edge:
        """int64 [n], named by its values."""
        return self.constant("/constants/" + "_".join(map(str, values)), np.array(values, np.int64))

    def external(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> Edge:
        """A tensor at `offset` bytes of the data file."""
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        values = math.prod(shape)
        nbytes = -(-values // 2) if kind == INT4 else values * helper.tensor_dtype_to_np_dtype(kind).itemsize
        for key, value in (("location", self.data_file), ("offset", offset), ("length", nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor
        return Edge(name, kind, shape)

    def model(self, producer: str, version: str) -> onnx.ModelProto:
        """The finished model, with value_info on every edge."""
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [info(e.name, e.type, e.shape) for e in self.inputs],
            [info(e.name, e.type, e.shape) for e in self.outputs],
            list(self.initializers.values()),
            value_info=[info(e.name, e.type, e.shape) for e in self.edges],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSIONS[self.opset], producer_name=producer,
            producer_version=version,
        )  # fmt: skip
