"""Kimi-Linear and other hybrids: names and configs of several writers, and weights that do not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from onnx_peer import to_onnx
from safetensors.numpy import load_file, save_file
from test_hostile import assert_refused, change
from test_logits import tokens
from validating import ONE, cache, findings, kld, run

from sampan.checkpoint import open_folder

__all__ = ["cache"]  # a fixture
Model = Callable[[str], Path]
KIMI = "kimi_linear-8-experts-first-attends"  # in float32, which numpy reads
LAYER = "model.layers.1."


def logits(folder: Path) -> np.ndarray[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    with torch.no_grad():
        found: np.ndarray[Any, Any] = loaded(torch.tensor([tokens()]), use_cache=False).logits[0].numpy()
    return found


def saved_by_transformers(source: Path, folder: Path, *, original: bool) -> Path:
    """`original`: as it saves; else under the names that it has in memory, with stacked experts."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(folder, save_original_format=original)
    for file in tiny.TOKENIZER_FILES:
        shutil.copy(source / file, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("original", "name"),
    [(True, "block_sparse_moe.gate_proj.weight"), (False, "mlp.experts.gate_up_proj")],
    ids=["saved", "stacked"],
)
def test_what_transformers_saves_gives_the_same_files(
    original: bool, name: str, model: Model, gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = saved_by_transformers(model(KIMI), tmp_path / KIMI, original=original)
    stored = load_file(folder / "model.safetensors")
    assert any(n.endswith(name) for n in stored)
    assert {"layer_types", "linear_attn_config"} <= json.loads((folder / "config.json").read_text()).keys()
    if not original:  # of a model that never was in the makers' form
        tiny.edit_json(folder / "config.json", linear_attn_config=None, first_k_dense_replace=None)
    assert np.array_equal(logits(folder), logits(model(KIMI))), "transformers reads one model in both"
    to_gguf(folder, tmp_path / "saved.gguf", "q4_k_m")
    assert (tmp_path / "saved.gguf").read_bytes() == gguf(KIMI, "q4_k_m").read_bytes()
    for source, out in ((folder, "theirs"), (model(KIMI), "makers")):
        to_onnx(source, tmp_path / out, "int4")
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "theirs" / file).read_bytes() == (tmp_path / "makers" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kimi_linear", "qwen3_next", "qwen3_5_moe"])
def test_graphs_of_hybrids_run_as_gguf_has_them(name: str, model: Model, tmp_path: Path) -> None:
    """Exact weights drift by nothing, and those of 4 bits by what the graph does; every row is the checkpoint's."""
    exact = run(to_onnx(model(name), tmp_path / "fp32", "fp32").artifact, model(name), ONE)
    assert findings(exact) == {} and kld(exact) < 1e-6
    coarse = run(to_onnx(model(name), tmp_path / "int4", "int4").artifact, model(name), ONE)
    fine = run(to_onnx(model(name), tmp_path / "int8", "int8").artifact, model(name), ONE)
    assert kld(fine) < kld(coarse) / 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kimi_linear", "qwen3_next"])
def test_files_of_hybrids_drift_less_with_more_bits(name: str, model: Model, gguf: Callable[[str, str], Path]) -> None:
    coarse, fine = (run(gguf(name, q), model(name), ONE) for q in ("q4_k_m", "q8_0"))
    assert findings(coarse) == findings(fine) == {}
    assert kld(fine) < kld(coarse) / 5


def test_epsilons_that_llama_cpp_shares_are_named(model: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("kimi_linear"), tmp_path / "m"))
    tiny.edit_json(folder / "config.json", rms_norm_eps=1e-5)
    shown = run_cli("convert", str(folder), "--plan").stdout
    assert (
        "llama.cpp norms q and k of the recurrent layers with epsilon 1e-05 (rms_norm_eps), transformers with" in shown
    )


FP8 = {
    "qwen3_next": "linear_attn.in_proj_qkvz", "qwen3_5": "linear_attn.in_proj_qkv",
    "qwen3_5_moe": "linear_attn.in_proj_z", "kimi_linear": "self_attn.f_b_proj",
}  # fmt: skip


@pytest.mark.everyday("qwen3_5")
@pytest.mark.parametrize("name", FP8)
def test_fp8_sources_become_what_their_values_do(name: str, model: Model, tmp_path: Path) -> None:
    """Blocks of 128×128, also where in_proj_qkvz is cut into the shares of key heads, which no block is as high as."""
    plain = ["lm_head", "in_proj_a", "in_proj_b", "in_proj_ba", "gate", "shared_expert_gate"]
    encoded, meant = encoders.encode(
        model(name), tmp_path, "fp8-block-bf16", config=encoders.FP8 | {"modules_to_not_convert": plain}
    )
    stored = open_folder(encoded).tensors()
    assert stored[f"model.layers.0.{FP8[name]}.weight"][1].dtype == "F8_E4M3"
    for folder, out in ((encoded, "encoded.gguf"), (meant, "meant.gguf")):
        to_gguf(folder, tmp_path / out, "q8_0")
    assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes()
    for folder, out in ((encoded, "encoded-onnx"), (meant, "meant-onnx")):
        to_onnx(folder, tmp_path / out, "int4")
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "encoded-onnx" / file).read_bytes() == (tmp_path / "meant-onnx" / file).read_bytes()


DECAY = {"kimi_linear": f"{LAYER}self_attn.A_log", "qwen3_5": f"{LAYER}linear_attn.A_log"}


@pytest.mark.everyday("kimi_linear-onnx", "qwen3_5-gguf")
@pytest.mark.parametrize("form", ["gguf", "onnx"])
@pytest.mark.parametrize("name", DECAY)
def test_a_decay_that_is_not_finite(name: str, form: str, model: Model, tmp_path: Path) -> None:
    """A logarithm of 100 is a number, and -exp of it none that float32 has."""
    folder = Path(shutil.copytree(model(name), tmp_path / "m"))

    def edit(t: dict[str, Any]) -> None:
        t[DECAY[name]] = t[DECAY[name]].copy()
        t[DECAY[name]].reshape(-1)[1] = 100

    change(folder, edit)
    line = f"model.safetensors: {DECAY[name]}: expected finite values, found -inf in row"
    assert_refused(folder, line, quant="int8", options=("--to", form))


MISFITS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a kernel of three": ("k_conv1d.weight", lambda v: v[:, :, :3], "expected shape [256, 4], found [256, 1, 3]"),
    "a head too few": ("A_log", lambda v: v[:, :, :3], "expected shape [4, 1], found [1, 1, 3, 1]"),
    "heads in a row": ("A_log", lambda v: v.reshape(-1), "expected shape [4, 1], found [4]"),
    "a narrow gate": ("f_b_proj.weight", lambda v: v[:, :32], "expected shape [256, 64], found [256, 32]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MISFITS)
def test_weights_that_do_not_fit_the_config(fault: str, model: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("kimi_linear"), tmp_path / "m"))
    name, misfit, line = MISFITS[fault]
    name = f"{LAYER}self_attn.{name}"
    change(folder, lambda t: t.update({name: misfit(t[name]).astype(t[name].dtype)}))
    assert_refused(folder, f"model.safetensors: {name}: {line}")


def test_an_expert_under_another_name(model: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("kimi_linear"), tmp_path / "m"))
    name = f"{LAYER}block_sparse_moe.experts.3.w2.weight"
    change(folder, lambda t: t.update({name.replace("w2", "w4"): t.pop(name)}))
    assert_refused(folder, f"expected the tensor {name}, found none of that name in any shard")


def test_a_file_of_further_tokens_that_the_index_names_and_that_is_missing(model: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("qwen3_5"), tmp_path / "m"))
    first = folder / "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(first)
    index = {"weight_map": dict.fromkeys(load_file(first), first.name) | {"mtp.fc.weight": "mtp.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, "mtp.safetensors")
    save_file({"mtp.fc.weight": np.ones((2, 2), np.float32)}, folder / "mtp.safetensors")
    planned = run_cli("convert", str(folder), "--plan", "--to", "onnx")
    assert re.search(r"left out: the multi-token prediction head, 1 tensors", planned.stdout), planned.stderr
