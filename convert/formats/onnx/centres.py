"""What keys have in common at all positions, which a graph on integers leaves out of its cache.

softmax(q·(k - c)) = softmax(q·k) whatever c is, as long as it is the same for every position. Keys of some models stand
far from zero where a rotation hardly turns them, and 8 bits with one scale would hold little else (docs/npu.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from .graph import FLOAT, UINT16, Edge, Graph

Centres = Mapping[str, NDArray[np.float32]]
"""Name of an edge before it is centred → its centre [heads, width]."""
SMALLEST = 1e-9  # a centre of zeros has a scale too


def subtracted(graph: Graph, path: str, x: Edge) -> Edge:
    """x [1, tokens, heads, width] less its centre, a constant of 16 bits that `fill` gives its values."""
    shape = (1, 1, *(int(n) for n in x.shape[2:]))
    codes = graph.constant(f"{x.name}/centre", np.full(shape, 32768, np.uint16))
    scale = graph.scalar(f"{x.name}/centre/scale", FLOAT, SMALLEST)
    middle = graph.scalar("/constants/middle", UINT16, 32768)
    centre = graph.node("DequantizeLinear", f"{path}/centre", [codes, scale, middle], shape)
    return graph.node("Sub", f"{path}/centre", [x, centre], x.shape)


def fill(graph: Graph, centres: Centres) -> None:
    """Give the centres that are in the graph their values; it stays as large as it was."""
    for name, values in centres.items():
        at = f"{name}/centre"
        if at in graph.initializers:
            scale = np.float32(max(float(np.abs(values).max()) / 32767, SMALLEST))
            codes = (np.rint(values / scale) + 32768).astype(np.uint16).reshape(graph.initializers[at].dims)
            for key, array in ((at, codes), (f"{at}/scale", np.array(scale))):
                graph.initializers[key] = numpy_helper.from_array(array, key)


def before(graph: Graph, name: str) -> Graph:
    """The part of a graph that gives this edge, its only output."""
    made, wanted = Graph(graph.data_file, graph.opset), {name}
    for node in reversed(graph.nodes):
        if not wanted.isdisjoint(node.output):
            made.nodes.insert(0, node)
            wanted.update(node.input)
    made.initializers |= {n: t for n, t in graph.initializers.items() if n in wanted}
    made.inputs += [e for e in graph.inputs if e.name in wanted]
    for e in (e for e in graph.edges if e.name in wanted):
        (made.outputs if e.name == name else made.edges).append(e)
    return made
