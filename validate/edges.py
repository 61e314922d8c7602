"""Which activations of a graph for an NPU need 16 bits: give groups of them 8, one at a time, and measure.

A group is a kind of activation in all layers, or all activations of a layer. The graphs run on the processor, where an
activation of 8 bits is one that goes through 256 steps over the same range before it gets its own codes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sampan.convert.formats.onnx.qdq import MOVES
from sampan.runtime import EngineOptions, Session
from sampan.runtime.engines import static
from sampan.static import TOKENS, read_layout
from sampan.wire import read_message

from .blame import drift_of, each_group, groups
from .drift import Side
from .reference import Bars
from .windows import Domain

LAYER = re.compile(r"/layers\.(\d+)/(.*?)(?:/output_0)?")
STEPS = 65535 // 255  # of 16 bits that one of 8 bits is as long as
NEEDED = 0.1  # more drift than this share of it: 16 bits are needed


def blame(path: Path, side: Side, domains: Sequence[Domain], threads: int | None, bars: Bars) -> dict[str, Any]:
    """What 8 bits add to the drift of a folder, by kind of activation and by layer, largest first."""
    partitions = groups(activations(path), LAYER)
    base = Side("candidate", path, threads=threads)
    with bars(sum(map(len, partitions.values())) + 1, "blame", "run") as progress:
        total = drift_of(side, base, domains)
        progress(1)
        result: dict[str, Any] = {"kld": total, "windows": sum(len(d.windows) for d in domains)}

        def measured(names: list[str]) -> dict[str, Any]:
            more = drift_of(side, replace(base, coarse=tuple(names)), domains) - total
            return {"more": more, "activations": len(names)}

        result |= each_group(partitions, measured, "more", progress)
    result["keep"] = [r["group"] for r in result["kinds"] if r["more"] > NEEDED * total]
    return result


def activations(path: Path) -> list[str]:
    """Names of the activations of 16 bits in the graphs of a folder, without those that only move another's values."""
    found: dict[str, None] = {}
    for part in read_layout(path).parts:
        graph = _read(path / part[TOKENS[1]]).graph
        fine = {t.name for t in graph.initializer if t.data_type == TensorProto.UINT16}
        operators = {o: n.op_type for n in graph.node for o in n.output}
        for e in graph.input:
            if f"{e.name}/zero" in fine:
                found[e.name] = None
        for node in graph.node:
            name = _closed(node)
            if name and f"{name}/zero" in fine and operators.get(node.input[0]) not in MOVES:
                found[name] = None
    return list(found)


def open_coarse(path: Path, options: EngineOptions, names: Collection[str]) -> Session:
    """The folder on the processor, with these activations at 8 bits."""
    return Session(static.open(path, options, lambda model: coarsen(model, frozenset(names))))


def coarsen(model: ModelProto, names: frozenset[str]) -> None:
    """Let activations go through 8 bits, in place."""
    graph = model.graph
    inputs = {i.name for i in graph.input} & names
    arrays = {t.name: t for t in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "DequantizeLinear" and node.input[0] in inputs:
            name, opened = node.input[0], node.output[0]
            node.output[0] = f"{name}/fine"
            nodes += _steps(model, arrays, name, node.output[0], opened)
        elif (name := _closed(node)) in names:
            nodes[-1:] = [*_steps(model, arrays, name, node.input[0], f"{name}/coarse"), node]
            node.input[0] = f"{name}/coarse"
    made = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(made)


def _closed(node: NodeProto) -> str:
    """The activation whose codes a node gives, or nothing."""
    return str(node.name).removesuffix("/QuantizeLinear") if node.op_type == "QuantizeLinear" else ""


def _steps(model: ModelProto, arrays: dict[str, TensorProto], name: str, value: str, out: str) -> list[NodeProto]:
    """Nodes that round a value to 256 steps over the range of the activation's codes."""
    scale, zero = (numpy_helper.to_array(arrays[f"{name}/{n}"]) for n in ("scale", "zero"))
    numbers = [f"{name}/coarse/scale", f"{name}/coarse/zero"]
    values = np.float32(scale * STEPS), np.uint8(round(int(zero) / STEPS))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(v), n) for n, v in zip(numbers, values, strict=True)
    )
    codes = f"{name}/coarse/codes"
    return [
        helper.make_node("QuantizeLinear", [value, *numbers], [codes], f"{name}/coarse/QuantizeLinear"),
        helper.make_node("DequantizeLinear", [codes, *numbers], [out], f"{name}/coarse/DequantizeLinear"),
    ]


def _read(path: Path) -> ModelProto:
    model = ModelProto()
    read_message(path, model)
    return model
