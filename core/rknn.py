"""Rockchip's NPUs: chips, number types and file names of folders for them, and a graph on the board.

rknn-toolkit-lite2 is Rockchip's runtime for aarch64 Linux, under Rockchip's licence; what compiles for it is in
convert/formats/onnx/rockchip.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, brief, wrong
from .extras import install, installed
from .wire import read_message

CHIPS = ("rk3588", "rk3576")
TYPES = ("fp16", "w8a8", "w4a16")
PACKAGE = "rknn-toolkit-lite2"
LARGEST = 1 << 28  # values of an input


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output, with the words of ONNX Runtime."""

    name: str
    shape: tuple[int, ...]
    type: str = "tensor(float16)"


def compiled(graph: str, chip: str) -> str:
    """The compiled graph's name."""
    return f"{graph.removesuffix('.onnx')}.{chip}.rknn"


def check() -> str:
    """The package's version. Raises InputError where it is missing."""
    found = installed(PACKAGE)
    if found is None:
        raise InputError(f"{PACKAGE}: it is not installed; on the board, an aarch64 Linux: {install('rknn')}")
    return found


class Session:
    """A compiled graph on the NPU, with the words of an ONNX Runtime session.

    `graph` is the graph that it was compiled from: names and shapes of inputs and outputs are in their order there.
    """

    def __init__(self, graph: Path, chip: str) -> None:
        self._inputs, self._outputs = _borders(graph)
        self._file = graph.with_name(compiled(graph.name, chip))
        check()
        try:
            api = importlib.import_module("rknnlite.api")
        except (ImportError, OSError) as e:
            raise InputError(f"{PACKAGE}: cannot be imported ({brief(str(e))})") from None
        self._lite = api.RKNNLite(verbose=False)
        if not self._file.is_file() or self._lite.load_rknn(str(self._file)) != 0:
            raise InputError(f"{self._file}: {PACKAGE} cannot load it")
        if self._lite.init_runtime() != 0:
            raise InputError(
                f"{self._file}: {PACKAGE} cannot start it on this machine's NPU; what it wrote above says why, and "
                "`sampan doctor` which driver and library are here"
            )

    def get_inputs(self) -> Sequence[Value]:
        return self._inputs

    def get_outputs(self) -> Sequence[Value]:
        return self._outputs

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs float32 in the order of the graph. Raises InputError where the NPU gives something else."""
        inputs = [np.ascontiguousarray(feeds[i.name], np.float16) for i in self._inputs]
        found = self._lite.inference(inputs=inputs)
        if found is None or [np.size(f) for f in found] != [int(np.prod(o.shape)) for o in self._outputs]:
            sizes = None if found is None else [np.shape(f) for f in found]
            raise wrong(self._file, f"outputs {[o.shape for o in self._outputs]}", brief(sizes))
        values = {o.name: np.asarray(f, np.float32).reshape(o.shape) for o, f in zip(self._outputs, found, strict=True)}
        return [values[n] for n in names]

    def release(self) -> None:
        self._lite.release()


def _borders(graph: Path) -> tuple[list[Value], list[Value]]:
    """Inputs and outputs of a graph's file."""
    try:
        import onnx
    except ImportError as e:
        raise InputError(f"onnx: cannot be imported ({e}); {install('onnx')}") from None
    model = onnx.ModelProto()
    read_message(graph, model)
    found = [
        [Value(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
        for values in (model.graph.input, model.graph.output)
    ]
    for value in (v for side in found for v in side):
        if not value.shape or len(value.shape) > 3 or not 0 < np.prod([float(n) for n in value.shape]) <= LARGEST:
            raise wrong(f"{graph}: {brief(value.name)}", "1 to 3 fixed sizes", brief(value.shape))
    return found[0], found[1]
