"""Baichuan2-7B: what the makers' layout computes, against a Llama of the same weights in transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from onnx_peer import Plain
from reference import assert_close, reference
from safetensors.torch import load_file, save_file
from test_logits import engine_logits, tokens
from transformers import AutoModelForCausalLM, LlamaConfig

from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.convert.family import read_architecture
from sampan.convert.formats._llama import check_engine
from sampan.convert.formats.gguf import known
from sampan.errors import InputError
from sampan.validate.artifact import open_gguf, open_onnx
from sampan.validate.audit import audit

HEAD = "lm_head.weight"
MAKERS = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "rope_parameters": None,
          "rope_theta": None, "num_key_value_heads": None, "head_dim": None, "attention_bias": None}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of the makers' layout, whose head has rows of any length, and the Llama that it computes."""
    packed, twin = (tmp_path_factory.mktemp(name) for name in ("packed", "twin"))
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=32, num_attention_heads=4,
        max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=2035,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(twin)
    stored = {
        k: torch.from_numpy(tiny.values(k, tuple(v.shape))) for k, v in load_file(twin / "model.safetensors").items()
    }
    stored[HEAD] *= torch.linspace(0.3, 9, 2048)[:, None]
    save_file(
        stored | {HEAD: torch.nn.functional.normalize(stored[HEAD]) * 1.0}, twin / "model.safetensors", {"format": "pt"}
    )
    for i in range(32):
        at = f"model.layers.{i}.self_attn."
        stored[at + "W_pack.weight"] = torch.cat([stored.pop(f"{at}{n}_proj.weight") for n in "qkv"])
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    for folder in (packed, twin):
        for file in tiny.TOKENIZER_FILES:
            shutil.copy(tiny.FIXTURE / file, folder)
    shutil.copy(twin / "config.json", packed)
    tiny.edit_json(packed / "config.json", **MAKERS)
    return packed, twin


def test_logits_in_llama_cpp(pair: tuple[Path, Path], tmp_path: Path) -> None:
    packed, twin = pair
    convert(prepare(open_folder(packed), tmp_path / "m.gguf", "gguf", "f32"))
    assert_close(engine_logits(tmp_path / "m.gguf", tokens()), reference(twin, tokens()))
    assert not audit(open_folder(packed), open_gguf(tmp_path / "m.gguf")).findings


def test_logits_in_onnx_runtime(pair: tuple[Path, Path], tmp_path: Path) -> None:
    packed, twin = pair
    convert(prepare(open_folder(packed), tmp_path / "m", "onnx", "fp32"))
    assert_close(Plain(tmp_path / "m")(tokens()), reference(twin, tokens()))
    assert not audit(open_folder(packed), open_onnx(tmp_path / "m")).findings


def test_a_head_that_is_not_normalised_is_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As llama.cpp's own converter writes it: the comparison above can fail."""
    packed, twin = pair
    folder = Path(shutil.copytree(packed, tmp_path / "m"))
    stored = load_file(folder / "model.safetensors")
    convert(prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "f32"))
    save_file(stored | {HEAD: stored[HEAD].flip(0) * 2}, folder / "model.safetensors", {"format": "pt"})
    assert any("output.weight" in f for f in audit(open_folder(folder), open_gguf(tmp_path / "m.gguf")).findings)
    with pytest.raises(AssertionError, match="times transformers' own float32 error"):
        logits = engine_logits(tmp_path / "m.gguf", tokens()) * stored[HEAD].norm(dim=1).numpy()
        assert_close(logits, reference(twin, tokens()))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_position_embeddings": None, "model_max_length": 4096}, "13B biases attention by distance (ALiBi)"),
        ({"num_hidden_layers": 40}, "13B biases attention by distance (ALiBi)"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: expected none, found 2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: expected False, found True"),
        ({"num_hidden_layers": 4}, "num_hidden_layers: expected 32, at which llama.cpp's baichuan computes such"),
        ({"architectures": ["BaiChuanForCausalLM"]}, "architectures: expected one of "),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, object], line: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair[0], tmp_path / "m"))
    tiny.edit_json(folder / "config.json", **changes)
    with pytest.raises(InputError) as caught:
        family, arch = read_architecture(open_folder(folder))
        check_engine(folder / "config.json", known(family, arch), arch)
    assert line in str(caught.value)
