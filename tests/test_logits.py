"""Logits of the F32 GGUF in llama.cpp against transformers in float32, every family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import to_gguf

from sampan import runtime

TOLERANCE = 1e-4  # of the largest logit, or of 1
EXACT = runtime.EngineOptions(context=160, kv="f32", flash_attention=False)
POSITIONS = 150  # past the 64 tokens of the yarn models' original context


def reference(folder: Path, tokens: list[int]) -> np.ndarray:
    """float32 [n, vocab] from transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def engine_logits(path: Path, tokens: list[int]) -> np.ndarray:
    with runtime.open(path, EXACT) as session:
        return session.logits(tokens)


def tokens() -> list[int]:
    return [int(t) for t in np.random.default_rng(7).integers(0, 1500, POSITIONS)]


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    bound = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    assert float(np.abs(ours - theirs).max()) <= bound
    assert float(np.abs(theirs).max()) > 0.5, "logits too small to tell anything"


@pytest.mark.parametrize("name", ["trained", "trained-kimi", *tiny.MODELS])
def test_f32_gguf_equals_transformers(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path]
) -> None:
    assert_close(engine_logits(gguf(name, "f32"), tokens()), reference(model(name), tokens()))


def test_the_comparison_can_fail(model: Callable[[str], Path], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong-rope"
    shutil.copytree(model("qwen3"), wrong)
    rope = json.loads((wrong / "config.json").read_text())["rope_parameters"]
    tiny.edit_json(wrong / "config.json", rope_parameters=rope | {"rope_theta": 20000.0})
    to_gguf(wrong, tmp_path / "wrong.gguf", "f32")
    with pytest.raises(AssertionError):
        assert_close(engine_logits(tmp_path / "wrong.gguf", tokens()), reference(model("qwen3"), tokens()))


@pytest.mark.parametrize("name", ["qwen2", "qwen3-yarn-attention", "qwen3_moe"])
def test_old_style_configs_give_the_same_file(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    old = tmp_path / name
    shutil.copytree(model(name), old)
    config = json.loads((old / "config.json").read_text())
    rope = dict(config["rope_parameters"])
    theta = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    experts = config.get("num_local_experts", config.get("num_experts"))
    tiny.edit_json(
        old / "config.json", rope_parameters=None, rope_theta=theta, dtype=None, torch_dtype="bfloat16",
        rope_scaling=rope | {"type": kind} if rope else None, num_local_experts=None, num_experts=experts,
        layer_types=None,
    )  # fmt: skip
    to_gguf(old, tmp_path / "old.gguf", "q8_0")
    assert (tmp_path / "old.gguf").read_bytes() == gguf(name, "q8_0").read_bytes()


def test_fused_experts_give_the_same_file(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    name = "qwen3_moe-8-experts"
    fused = tmp_path / name
    shutil.copytree(model(name), fused)
    stored = load_file(fused / "model.safetensors")
    config = json.loads((fused / "config.json").read_text())
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp.experts"
        experts = [
            {k: stored.pop(f"{prefix}.{e}.{k}_proj.weight") for k in ("gate", "up", "down")}
            for e in range(config.get("num_local_experts") or config["num_experts"])
        ]
        stored[f"{prefix}.gate_up_proj"] = np.stack([np.concatenate([e["gate"], e["up"]]) for e in experts])
        stored[f"{prefix}.down_proj"] = np.stack([e["down"] for e in experts])
    save_file(stored, fused / "model.safetensors", metadata={"format": "pt"})
    to_gguf(fused, tmp_path / "fused.gguf", "q8_0")
    assert (tmp_path / "fused.gguf").read_bytes() == gguf(name, "q8_0").read_bytes()
