"""Norms whose epsilon no config says: of the latents, and of q and k in Kimi's recurrent layers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import to_gguf
from onnx_peer import Plain, to_onnx
from reference import MULTIPLE, Reference, assert_close, reference
from test_logits import engine_logits, tokens

from sampan.checkpoint import open_folder
from sampan.convert import latent
from sampan.convert.conversion import prepare

Model = Callable[[str], Path]
LARGE = 0.05  # what transformers leaves at 1e-6 it leaves there whatever rms_norm_eps says
LATENT = ("glm4_moe_lite", "deepseek_v3", "kimi_linear")


def changed(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    tiny.edit_json(folder / "config.json", rms_norm_eps=LARGE)
    return folder


def as_llama_cpp(folder: Path) -> Reference:
    """transformers with rms_norm_eps in the latents' norms, too."""
    import torch
    from transformers import AutoModelForCausalLM

    found = []
    for dtype in (torch.float64, torch.float32):
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
        )
        for name, module in loaded.named_modules():
            if name.endswith("_a_layernorm"):
                assert module.variance_epsilon == latent.LATENT_EPS
                module.variance_epsilon = LARGE
        with torch.no_grad():
            found.append(loaded(torch.tensor([tokens()]), use_cache=False).logits[0].numpy())
    exact, single = found
    return Reference(exact, float(np.abs(single - exact).max()))


@pytest.mark.parametrize("name", LATENT)
def test_onnx_has_the_epsilon_of_transformers(
    name: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(model(name), tmp_path / "m")
    wanted = reference(folder, tokens())
    to_onnx(folder, tmp_path / "out", "fp32")
    assert_close(Plain(tmp_path / "out")(tokens()), wanted)
    monkeypatch.setattr(latent, "LATENT_EPS", LARGE)  # the comparison would tell
    to_onnx(folder, tmp_path / "wrong", "fp32")
    assert wanted.error(Plain(tmp_path / "wrong")(tokens())) > 10 * MULTIPLE


@pytest.mark.parametrize("name", LATENT[:2])
def test_gguf_has_the_epsilon_that_its_note_tells(name: str, model: Model, tmp_path: Path) -> None:
    folder = changed(model(name), tmp_path / "m")
    assert (
        f"llama.cpp norms the attention's latents with epsilon {LARGE:g} (rms_norm_eps), transformers with 1e-06"
        in prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "f32").notes
    )
    to_gguf(folder, tmp_path / "m.gguf", "f32")
    found = engine_logits(tmp_path / "m.gguf", tokens())
    assert_close(found, as_llama_cpp(folder))
    assert reference(folder, tokens()).error(found) > 10 * MULTIPLE
