"""A plain and a hybrid model for each engine, in float32: for tests that hold in all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from conftest import to_gguf
from onnx_peer import to_onnx

MODELS = ("gguf", "onnx", "hybrid gguf", "hybrid onnx")


@pytest.fixture(scope="module")
def artifacts(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of MODELS → the file or folder."""
    out = tmp_path_factory.mktemp("engines")
    for name, source in (("", tiny.FIXTURE), ("hybrid ", model("qwen3_5"))):
        to_gguf(source, out / f"{name}gguf.gguf", "f32")
        to_onnx(source, out / f"{name}onnx", "fp32")
    return {m: out / (f"{m}.gguf" if m.endswith("gguf") else m) for m in MODELS}


@pytest.fixture(params=MODELS)
def path(request: pytest.FixtureRequest, artifacts: dict[str, Path]) -> Path:
    """Each of them in turn."""
    return artifacts[request.param]
