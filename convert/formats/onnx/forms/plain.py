"""The static form for compilers that quantise by themselves: floats, and operators of an older opset.

An input has at most three dimensions: Rockchip's runtimes take four for an image, whose order differs from one release
to the next (docs/npu.md).
"""

from __future__ import annotations

import numpy as np

from ..graph import FLOAT, Edge
from .static import Static


class Plain(Static):
    """`Static` without constants as codes and without centres, and with norms of older operators."""

    opset = 19

    def _input(self, name: str, shape: tuple[int, ...]) -> Edge:
        if len(shape) < 4 or name in self._inputs:
            return super()._input(name, shape)
        given = self.graph.input(name, FLOAT, shape[1:])
        self._inputs[name] = self._reshape(f"/inputs/{name}", given, *shape)
        return self._inputs[name]

    def norm(self, path: str, x: Edge, name: str, eps: float | None = None) -> Edge:
        """x / sqrt(mean(x²) + eps) · scale."""
        g, scale = self.graph, self.weights.array(self.graph, self._file, path, name)
        eps = self._arch.norm_eps if eps is None else eps
        mean = g.node(
            "ReduceMean", path, [g.node("Mul", f"{path}/square", [x, x], x.shape), g.ints(-1)], (*x.shape[:-1], 1),
            keepdims=1,
        )  # fmt: skip
        root = g.node("Sqrt", path, [g.node("Add", f"{path}/eps", [mean, self._factor(eps)], mean.shape)], mean.shape)
        return g.node("Mul", path, [g.node("Div", path, [x, root], x.shape), scale], x.shape)

    def _centred(self, path: str, keys: Edge) -> Edge:
        return keys  # floats need none

    def _seen(self, path: str, past: Edge, turned: Edge, new: Edge, order: tuple[int, ...]) -> list[Edge]:
        """In one: floats lose nothing in the cache."""
        axis = order.index(1)
        shape = [int(n) for n in past.shape]
        shape[axis] += self.tokens
        return [self.graph.node("Concat", f"{path}/cache", [past, turned], tuple(shape), axis=axis)]

    def _factor(self, value: float) -> Edge:
        return self.graph.constant(f"/constants/{value!r}", np.array([value], np.float32))
