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
IR_VERSION = 11  # of that opset's time
CONTRIB = "com.microsoft"
DATA_FILE = "model.onnx.data"
FLOAT, FLOAT16, INT64, INT32, UINT8 = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8,
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

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._edges: list[Edge] = []
        self._inputs: list[Edge] = []
        self._outputs: list[Edge] = []

    def input(self, name: str, kind: int, shape: Shape) -> Edge:
        edge = Edge(name, kind, shape)
        self._inputs.append(edge)
        return edge

    def output(self, name: str, kind: int, shape: Shape) -> Edge:
        """Declare an output; a node must name it."""
        edge = Edge(name, kind, shape)
        self._outputs.append(edge)
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
        self._edges += [e for e in outputs if e is not None and e not in self._outputs]
        self._nodes.append(
            helper.make_node(
                op, [e.name if e else "" for e in inputs], [e.name if e else "" for e in outputs], name, domain=domain,
                **attributes,
            )
        )  # fmt: skip
        return first

    def constant(self, name: str, values: NDArray[Any]) -> Edge:
        """A small tensor inside the graph file; the same name is written once."""
        edge = Edge(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        self._initializers.setdefault(name, numpy_helper.from_array(values, name))
        return edge

    def ints(self, *values: int) -> Edge:
        """int64 [n], named by its values."""
        return self.constant("/constants/" + "_".join(map(str, values)), np.array(values, np.int64))

    def external(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> Edge:
        """A tensor at `offset` bytes of the data file."""
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        nbytes = math.prod(shape) * helper.tensor_dtype_to_np_dtype(kind).itemsize
        for key, value in (("location", DATA_FILE), ("offset", offset), ("length", nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor
        return Edge(name, kind, shape)

    def model(self, producer: str, version: str) -> onnx.ModelProto:
        """The finished model, with value_info on every edge."""
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [info(e.name, e.type, e.shape) for e in self._inputs],
            [info(e.name, e.type, e.shape) for e in self._outputs],
            list(self._initializers.values()),
            value_info=[info(e.name, e.type, e.shape) for e in self._edges],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=producer, producer_version=version
        )
