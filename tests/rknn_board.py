"""A stand-in for a board with rknn-toolkit-lite2, which shares nothing with the code that is tested."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sampan import rknn


class StandIn:
    """What RKNNLite of rknn-toolkit-lite2 2.5 takes and gives, by the graph that a file was compiled from."""

    answers: tuple[int, int] = (0, 0)  # of load_rknn and init_runtime
    nothing = False
    released: list[str]

    def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
        self.path: Path | None = None

    def load_rknn(self, path: str, key_path: str | None = None) -> int:
        self.path = Path(path)
        assert self.path.read_bytes()
        self.graph = self.path.with_name(self.path.name.replace(".rk3588.rknn", ".onnx"))
        return self.answers[0]

    def init_runtime(
        self, target: str | None = None, device_id: str | None = None, async_mode: bool = False, core_mask: int = 0
    ) -> int:
        assert target is None
        self.start()
        return self.answers[1]

    def inference(
        self, inputs: list[Any], data_type: object = None, data_format: object = None,
        inputs_pass_through: object = None, get_frame_id: bool = False, reuse_outputs: bool = False,
    ) -> list[Any] | None:  # fmt: skip
        assert all(type(i) is np.ndarray and i.flags.c_contiguous and i.dtype == np.float16 for i in inputs)
        assert all(i.ndim <= 3 for i in inputs), "four dimensions are an image, in an order that differs by release"
        return None if self.nothing else self.run(inputs)

    def start(self) -> None:
        import onnxruntime as ort

        self.session = ort.InferenceSession(self.graph, providers=["CPUExecutionProvider"])

    def run(self, inputs: list[Any]) -> list[Any]:
        values = [i.astype(np.float32) for i in inputs]
        names = [i.name for i in self.session.get_inputs()]
        found = self.session.run(None, dict(zip(names, values, strict=True)))
        return [f.astype(np.float16).astype(np.float32) for f in found]

    def release(self) -> None:
        self.released.append(str(self.path))


def install(monkeypatch: pytest.MonkeyPatch, lite: Any) -> Any:
    """Make `lite` the RKNNLite that programs import."""
    package, api = ModuleType("rknnlite"), ModuleType("rknnlite.api")
    api.RKNNLite = lite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", package)
    monkeypatch.setitem(sys.modules, "rknnlite.api", api)
    monkeypatch.setattr(rknn, "installed", lambda name: "2.5.0")
    return lite
