"""Kimi checkpoints whose text lies inside a vision model, and what a conversion says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401 - makes bfloat16 known to safetensors
import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from reference import MULTIPLE, assert_close, reference
from safetensors.numpy import load_file, save_file
from test_logits import engine_logits, tokens

from sampan.artifact import manifest_path
from sampan.gguf import read_header

VISION = {
    "KimiVLForConditionalGeneration": ("kimi_vl", "multi_modal_projector.linear_1.weight"),
    "KimiK25ForConditionalGeneration": ("kimi_k25", "mm_projector.proj.0.weight"),
}
BETAS = "deepseek_v3-yarn-betas"


def inside_vision(text: Path, folder: Path, architecture: str) -> Path:
    """The same text model as a Kimi-VL or K2.5 checkpoint, with a small vision tower."""
    kind, projector = VISION[architecture]
    shutil.copytree(text, folder)
    stored = {f"language_model.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    stored |= {"vision_tower.patch_embed.proj.weight": np.ones((4, 3, 2, 2), np.float32)}
    stored |= {projector: np.ones((8, 4), np.float32)}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config = {"architectures": [architecture], "model_type": kind, "text_config": config, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("architecture", VISION)
def test_the_text_is_the_same_file_and_vision_is_left_out(
    architecture: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = inside_vision(model("deepseek_v3"), tmp_path / "deepseek_v3", architecture)
    out = tmp_path / "vision.gguf"
    result = run_cli("convert", str(folder), "--quant", "q8_0", "-o", str(out))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("left out: the vision tower, 1 tensors, 192 B") == 1
    assert result.stderr.count("left out: the vision projector, 1 tensors, 128 B") == 1
    plain = read_header(gguf("deepseek_v3", "q8_0"))
    ours = read_header(out)
    skip = {"general.name", "general.basename"}
    assert {k: v for k, v in ours.metadata.items() if k not in skip} == {
        k: v for k, v in plain.metadata.items() if k not in skip
    }
    assert out.read_bytes()[ours.data_start :] == gguf("deepseek_v3", "q8_0").read_bytes()[plain.data_start :]
    left_out = json.loads(manifest_path(out).read_text())["left_out"]
    assert left_out["vision tower"] == ["vision_tower.patch_embed.proj.weight"]
    planned = json.loads(run_cli("convert", str(folder), "--plan", "--json").stdout)
    assert any("left out: the vision tower" in note for note in planned["notes"])


def test_a_tensor_beside_text_and_vision_is_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = inside_vision(model("deepseek_v3"), tmp_path / "m", "KimiVLForConditionalGeneration")
    stored = load_file(folder / "model.safetensors")
    save_file(stored | {"audio_tower.weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    result = run_cli("convert", str(folder), "-o", str(tmp_path / "m.gguf"))
    assert result.returncode == 2
    assert "audio_tower.weight: expected only tensors that kimi_vl knows" in result.stderr


@pytest.mark.slow
def test_betas_of_yarn_need_the_runtime(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """llama.cpp by itself computes Kimi K2's beta_fast 1 as 32: another model."""
    folder = Path(shutil.copytree(model(BETAS), tmp_path / "m"))
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    tiny.edit_json(folder / "config.json", rope_parameters=rope | {"beta_fast": 32.0})
    alone = tmp_path / "alone.gguf"
    to_gguf(folder, alone, "f32")
    exact = reference(model(BETAS), tokens())
    assert_close(engine_logits(gguf(BETAS, "f32"), tokens()), exact)
    assert exact.error(engine_logits(alone, tokens())) > 10 * MULTIPLE
    plan = run_cli("convert", str(model(BETAS)), "--plan").stdout
    assert "llama.cpp's own programs need --yarn-beta-fast 1 --yarn-beta-slow 1" in plan
