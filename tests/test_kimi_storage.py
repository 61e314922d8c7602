"""The trained Kimi-shaped model, re-encoded as the big checkpoints are, through conversion and validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import encoders
import pytest
import tiny
from conftest import to_gguf
from onnx_peer import to_onnx
from test_trained import share_right
from validating import QUICK, cache, findings, run

from sampan.validate.artifact import open_gguf
from sampan.validate.validation import Options

# facts stands beside the fixtures; test_trained put its folder on the path
import facts  # isort: skip

__all__ = ["cache"]  # a fixture of every test here

pytestmark = pytest.mark.slow
EXACT = {"fp8-block": "bf16", "int4": "q4_0", "mxfp4": "mxfp4"}
Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            made[name] = encoders.encode(tiny.KIMI, tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.mark.parametrize("encoding", EXACT)
def test_native_drifts_as_little_as_the_engine(encoding: str, kimi: Made, tmp_path: Path) -> None:
    """Against the encoded checkpoint: what the weights lose is nothing, or bfloat16's rounding of FP8 values."""
    encoded, _ = kimi(encoding)
    out = tmp_path / "native.gguf"
    to_gguf(encoded, out, "native")
    assert EXACT[encoding] in open_gguf(out).types
    report = run(out, encoded, Options())
    assert findings(report) == {}
    assert report["verdict"] == "passed"
    total = report["candidates"][0]["drift"]["total"]["mean"]["kld"]["value"]
    weights = run(out, encoded, replace(QUICK, weights_only=True))["candidates"][0]["drift"]["weights"]["mean"]["kld"]
    print(f"{encoding}: KLD {total:.2g}, of the weights {weights['value']:.2g}")
    assert weights["value"] < total
    assert (weights["value"] == 0) == (encoding != "fp8-block")


@pytest.mark.parametrize("encoding", EXACT)
def test_it_still_answers(encoding: str, kimi: Made, tmp_path: Path) -> None:
    encoded, _ = kimi(encoding)
    questions = facts.capital_questions()[::6]
    to_gguf(encoded, tmp_path / "int4.gguf", "int4")
    assert share_right(tmp_path / "int4.gguf", questions) >= 0.9
    to_onnx(encoded, tmp_path / "int4", "int4")
    assert share_right(tmp_path / "int4", questions) >= 0.9
