"""Logits of the F32 GGUF in llama.cpp against transformers, every family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import to_gguf
from reference import MULTIPLE, assert_close, reference
from safetensors.numpy import load_file, save_file

from sampan import runtime

EXACT = runtime.EngineOptions(context=160, kv="f32", flash_attention=False)
POSITIONS = 150  # past the 64 tokens of the yarn models' original context


def engine_logits(path: Path, tokens: list[int]) -> np.ndarray:
    with runtime.open(path, EXACT) as session:
        return session.logits(tokens)


def tokens() -> list[int]:
    return [int(t) for t in np.random.default_rng(7).integers(0, 1500, POSITIONS)]


@pytest.mark.everyday("trained*", *tiny.PLAIN)
@pytest.mark.parametrize("name", ["trained", "trained-kimi", *tiny.MODELS])
def test_f32_gguf_equals_transformers(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path]
) -> None:
    assert_close(engine_logits(gguf(name, "f32"), tokens()), reference(model(name), tokens()))


HYBRIDS = ("qwen3_next", "qwen3_5", "qwen3_5-equal-heads", "qwen3_5_moe", "kimi_linear")


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_state_is_carried_from_piece_to_piece(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path]
) -> None:
    """Tokens one by one before and after a piece; then again from the start, which a state cannot be cut back to."""
    ids = tokens()
    pieces = [*([i] for i in ids[:20]), ids[20:120], *([i] for i in ids[120:])]
    with runtime.open(gguf(name, "f32"), EXACT) as session:
        engine = session._engine
        for _ in range(2):
            rows = np.concatenate([engine.evaluate(piece, len(piece)).copy() for piece in pieces])
            assert_close(rows, reference(model(name), ids))
            assert engine.keep(60) == 0


def _rope(theta: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
        tiny.edit_json(folder / "config.json", rope_parameters=rope | {"rope_theta": theta * rope["rope_theta"]})

    return change


def _heads(folder: Path) -> None:
    """Two heads of one layer's q change places."""
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.2.self_attn.q_proj.weight"
    heads = stored[name].reshape(4, -1, stored[name].shape[-1])
    stored[name] = np.ascontiguousarray(heads[[1, 0, 2, 3]]).reshape(stored[name].shape)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


FAULTS: dict[str, Callable[[Path], None]] = {
    "theta 1 % off": _rope(1.01),
    "another epsilon": lambda folder: tiny.edit_json(folder / "config.json", rms_norm_eps=1e-5),
    "two heads swapped": _heads,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_can_fail(fault: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    """Small faults are far outside of what is allowed."""
    shutil.copytree(model("qwen3"), tmp_path / "m")
    FAULTS[fault](tmp_path / "m")
    to_gguf(tmp_path / "m", tmp_path / "wrong.gguf", "f32")
    wrong = engine_logits(tmp_path / "wrong.gguf", tokens())
    assert reference(model("qwen3"), tokens()).error(wrong) > 10 * MULTIPLE


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
