"""A new family is one new file: it converts, validates and runs in both formats without another edit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from onnx_peer import Plain
from reference import assert_close, reference
from test_logits import engine_logits, tokens
from validating import ONE, run

import sampan.convert.families as families
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.convert.family import read_architecture

ADDING = Path(__file__).parents[1] / "docs" / "adding.md"


@pytest.fixture
def starling(model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of an architecture that nobody knows, and the documented file of its family in a folder of plug-ins."""
    (tmp_path / "plugins").mkdir()
    example = ADDING.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "plugins" / "starling.py").write_text(example)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "plugins")])
    monkeypatch.delitem(sys.modules, "sampan.convert.families.starling", raising=False)
    folder = Path(shutil.copytree(model("llama-linear"), tmp_path / "model"))
    tiny.edit_json(folder / "config.json", architectures=["StarlingForCausalLM"], model_type="starling")
    return folder


def test_a_family_that_is_dropped_in(starling: Path, model: Callable[[str], Path], tmp_path: Path) -> None:
    assert read_architecture(open_folder(starling))[1].family == "starling"
    exact = reference(model("llama-linear"), tokens())
    convert(prepare(open_folder(starling), tmp_path / "m.gguf", "gguf", "f32"))
    assert_close(engine_logits(tmp_path / "m.gguf", tokens()), exact)
    convert(prepare(open_folder(starling), tmp_path / "m", "onnx", "fp32"))
    assert_close(Plain(tmp_path / "m")(tokens()), exact)
    assert json.loads((tmp_path / "m" / "manifest.json").read_text())["family"] == "starling"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_it_validates(form: str, starling: Path, tmp_path: Path) -> None:
    convert(prepare(open_folder(starling), tmp_path / f"m.{form}", form, "q8_0"))
    checks = run(tmp_path / f"m.{form}", starling, ONE)["candidates"][0]["checks"]
    assert [c["findings"] for c in checks] == [[]] * len(checks)
