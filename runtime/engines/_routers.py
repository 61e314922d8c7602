"""Which experts an ONNX graph chose: what its mixtures choose by becomes an output of the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sampan.onnx import EXPERTS, Graph

LAYER = re.compile(r"(?:^|/)layers\.(\d+)/")  # in the names of our nodes and of onnxruntime-genai's


class RouterRecorder:
    """`outputs`: edges whose values `hear` wants after every run; `model`: the graph that gives them.

    A graph that has a mixture without a layer in its name, or two in one layer or behind one router, has no `outputs`.
    """

    def __init__(self, graph: Graph) -> None:
        self._used: dict[str, tuple[int, int]] = {}  # edge → layer, experts a token
        nodes = [n for n in graph.model.graph.node if n.op_type in EXPERTS]
        for node in nodes:
            match, used = LAYER.search(node.name), next((a.i for a in node.attribute if a.name == "k"), 1)
            if match and len(node.input) > 1 and used > 0:
                self._used[node.input[1]] = int(match[1]), used
        if len({layer for layer, _ in self._used.values()}) != len(nodes):
            self._used = {}
        for edge in self._used:
            graph.model.graph.output.add(name=edge)
        self.model: bytes = graph.model.SerializeToString()
        self._layers: dict[int, list[NDArray[np.int32]]] = {}

    @property
    def outputs(self) -> list[str]:
        return list(self._used)

    def hear(self, values: Mapping[str, NDArray[np.floating]]) -> None:
        """The experts with the largest values, of every token."""
        for edge, (layer, used) in self._used.items():
            used = min(used, values[edge].shape[1])
            best = np.argpartition(values[edge], -used, axis=1)[:, -used:]
            self._layers.setdefault(layer, []).append(np.sort(best, axis=1).astype(np.int32))

    def take(self) -> dict[int, NDArray[np.int32]]:
        """Layer → ids of the chosen experts, sorted, int32 [tokens, used], since the last call."""
        found = {layer: np.concatenate(parts) for layer, parts in self._layers.items()}
        self._layers = {}
        return found
