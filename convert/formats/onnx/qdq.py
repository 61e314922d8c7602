"""A float graph → the same graph on integers: every activation goes through QuantizeLinear and DequantizeLinear.

Activations have 16 bits and a zero point of their own; what stands in a cache has 8 bits around 128, with the same
scale in every graph. What only moves values hands its range on. Activations without a quantity stay floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .graph import FLOAT, INT16, UINT8, UINT16, Edge, Graph

MOVES = ("Reshape", "Transpose", "Split", "Slice", "Concat", "Expand")
SMALLEST = 1e-9  # a range of zeros has a scale too
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Quantity:
    """value = scale · (code - zero), codes of `bits` bits, `signed` or not."""

    bits: int
    scale: float
    zero: int
    signed: bool = False

    @property
    def type(self) -> int:
        """ONNX's number of the codes' type."""
        return int(INT16 if self.signed else UINT8 if self.bits == 8 else UINT16)


def quantity(low: float, high: float, *, cache: bool, signed: bool = False) -> Quantity:
    """Codes for values from `low` to `high`, and for zero."""
    if cache:
        return Quantity(8, max(-low, high, SMALLEST) / 127, 128)
    if signed:
        return Quantity(16, max(-low, high, SMALLEST) / 32767, 0, signed=True)
    low, high = min(low, 0.0), max(high, 0.0, low + SMALLEST)
    scale = (high - low) / 65535
    return Quantity(16, scale, round(-low / scale))


def constants(graph: Graph) -> set[str]:
    """Names of what does not depend on an input."""
    found = set(graph.initializers)
    for node in graph.nodes:
        if all(i in found for i in node.input):
            found.update(node.output)
    return found


def activations(graph: Graph) -> Iterator[Edge]:
    """Every float that depends on an input, inputs first."""
    known = constants(graph)
    yield from graph.inputs
    yield from (e for e in (*graph.edges, *graph.outputs) if e.name not in known)


def groups(graph: Graph) -> dict[str, str]:
    """Name of an activation → that of the one whose range it has. What a graph gives for the cache it takes again."""
    leader = {e.name: e.name for e in activations(graph)}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in graph.nodes:
        if node.op_type in MOVES:
            first, *rest = (find(n) for n in (*node.input, *node.output) if n in leader)
            for name in rest:
                leader[find(name)] = first
    for name in (n for n in leader if n.startswith("past_")):
        leader[find(name)] = find(name.replace("past", "present", 1))
    return {name: find(name) for name in leader}


def quantised(graph: Graph, quantities: Mapping[str, Quantity]) -> Graph:
    """The graph on integers; `quantities` of activations, by name. Those without one stay floats.

    Inputs and outputs are codes, or such floats. An Identity becomes a change from one quantity to another.
    """
    known, made = constants(graph), Graph(graph.data_file)
    made.initializers |= graph.initializers
    types = {e.name: e for e in (*graph.inputs, *graph.edges, *graph.outputs)}

    def type_of(name: str) -> int:
        return quantities[name].type if name in quantities else FLOAT

    def value_of(name: str) -> str:
        """The float edge behind an activation, or a constant."""
        return opened(name) if name in quantities and name not in known else name

    def number(name: str) -> list[Edge]:
        q = quantities[name]
        return [made.scalar(f"{name}/scale", FLOAT, q.scale), made.scalar(f"{name}/zero", q.type, q.zero)]

    def open_(name: str, codes: Edge) -> None:
        made.node("DequantizeLinear", name, [codes, *number(name)], codes.shape)

    def close(name: str, value: Edge) -> None:
        out = outputs.get(name) or Edge(f"{name}/codes", quantities[name].type, value.shape)
        open_(name, made.node("QuantizeLinear", name, [value, *number(name)], out.shape, out=out))

    outputs = {e.name: made.output(e.name, type_of(e.name), e.shape) for e in graph.outputs}
    for e in graph.inputs:
        given = made.input(e.name, type_of(e.name), e.shape)
        if e.name in quantities:
            open_(e.name, given)
    for node in graph.nodes:
        if node.op_type == "Identity":
            close(node.output[0], Edge(value_of(node.input[0]), FLOAT, types[node.output[0]].shape))
            continue
        if node.output[0] in known:
            made.copy(node, [types[n] for n in node.output])
            continue
        values = {n: Edge(f"{n}/float" if n in quantities else n, FLOAT, types[n].shape) for n in node.output}
        made.copy(node, list(values.values()), [value_of(i) for i in node.input])
        for name, value in values.items():
            if name in quantities:
                close(name, value)
    return made


def opened(name: str) -> str:
    """The float edge behind the codes of an activation."""
    return f"{name}/DequantizeLinear/output_0"
