"""200 greedy tokens of a float32 artifact are those of transformers in float32: every family, both engines.

Where the two most probable tokens are nearly equal, float32 itself does not say which comes first. So the prompt is the
first of a fixed series for which, at each of the 200 positions, the margin between the two in float64 is larger than
the errors of two logits that an engine may have (tests/reference.py), and for which no token is an end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes  # noqa: F401 - makes bfloat16 known to safetensors
import numpy as np
import pytest
import tiny
from conftest import to_gguf
from onnx_peer import to_onnx
from reference import MULTIPLE, reference
from safetensors.numpy import load_file, save_file
from test_baichuan import pair
from test_kimi import VISION, inside_vision

from sampan import registry, runtime
from sampan.runtime import EngineOptions, Options, Sampling

__all__ = ["pair"]  # a fixture
TOKENS, PROMPTS = 200, 12
ENDS = {2033, 2035}  # of the fixture's tokenizer
FAMILIES = registry.names("sampan.convert.families")
INSIDE = {  # families of a text inside another model → the text's, and how it gets there
    **{kind: ("deepseek_v3", partial(inside_vision, architecture=name)) for name, (kind, _) in VISION.items()},
    "qwen3_5_vl": ("qwen3_5", None), "qwen3_5_moe_vl": ("qwen3_5_moe", None),
}  # fmt: skip
EVERYDAY = {"qwen3"}


@dataclass(frozen=True, slots=True)
class Expected:
    prompt: list[int]
    answer: list[int]


def expected(folder: Path) -> Expected:
    """By transformers' own generate, with its cache."""
    import torch
    from transformers import AutoConfig, GenerationConfig

    auto = tiny.auto_class(AutoConfig.from_pretrained(folder))
    model = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    # in place of its own, from which it would take an end
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
    tried = []
    for seed in range(PROMPTS):
        prompt = [int(t) for t in np.random.default_rng(seed).integers(0, 1500, 12)]
        with torch.no_grad():
            whole = model.generate(torch.tensor([prompt]))[0].tolist()
        answer = whole[len(prompt) :]
        assert len(answer) == TOKENS
        exact = reference(folder, whole)
        two = np.sort(exact.logits[len(prompt) - 1 : -1], axis=-1)[:, -2:]
        margin = float((two[:, 1] - two[:, 0]).min())
        if margin > 2 * MULTIPLE * exact.own and not ENDS & set(answer):
            return Expected(prompt, answer)
        tried.append(f"{margin:.1e} of {exact.own:.1e}")
    raise AssertionError(f"every prompt has nearly equal tokens, or an end: {', '.join(tried)}")


def inside(text: Path, folder: Path) -> Path:
    """A text of Qwen3.5 as its makers publish it, inside a model of pictures, whose tower is left out here."""
    shutil.copytree(text, folder)
    stored = load_file(folder / "model.safetensors")
    for name in [n for n in stored if n.startswith("model.")]:
        stored[name.replace("model.", "model.language_model.", 1)] = stored.pop(name)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    outer = {
        "architectures": [config["architectures"][0].replace("CausalLM", "ConditionalGeneration")],
        "model_type": config["model_type"].removesuffix("_text"), "text_config": config, "vision_config": {},
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(outer))
    return folder


def source(family: str, model: Callable[[str], Path], place: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A checkpoint of the family, and what transformers reads as the same model."""
    if family == "baichuan":
        packed, twin = request.getfixturevalue("pair")
        return packed, twin
    if family in INSIDE:
        text, put = INSIDE[family]
        return (put or inside)(model(text), place / "m"), model(text)
    return model(family), model(family)


@pytest.mark.parametrize("family", [f if f in EVERYDAY else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_greedy_tokens_are_transformers(
    family: str, model: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint, twin = source(family, model, tmp_path, request)
    wanted = expected(twin)
    assert len(set(wanted.answer)) > 1, "one token again and again tells little"
    to_gguf(checkpoint, tmp_path / "m.gguf", "f32")
    to_onnx(checkpoint, tmp_path / "onnx", "fp32")
    options = EngineOptions(context=256, threads=1, kv="f32", flash_attention=False)
    for path in (tmp_path / "m.gguf", tmp_path / "onnx"):
        with runtime.open(path, options) as session:
            found = session.stream(wanted.prompt, Options(TOKENS, Sampling())).read()
        assert list(found.tokens) == wanted.answer, path.name
