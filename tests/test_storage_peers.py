"""What the codes mean, judged by the packages that write such checkpoints, and by logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import pytest
from conftest import Pair, to_gguf
from reference import assert_close, reference
from safetensors.torch import load_file
from test_logits import engine_logits, tokens


@pytest.mark.parametrize("name", ["int4", "int4-channel", "int4-zeros", "mxfp4", "nvfp4", "fp8-channel", "fp8-tensor"])
def test_transformers_with_compressed_tensors_reads_the_same(name: str, pair: Pair) -> None:
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    encoded, meant = pair(name)
    model = AutoModelForCausalLM.from_pretrained(encoded, quantization_config=CompressedTensorsConfig(dequantize=True))
    theirs = model.state_dict()
    for key, values in load_file(meant / "model.safetensors").items():
        assert torch.equal(theirs[key], values.to(torch.bfloat16)), key  # their result has the scale's dtype


@pytest.mark.parametrize("name", ["fp8-block", "fp8-block-bf16"])
def test_compressed_tensors_reads_the_same_blocks(name: str, pair: Pair) -> None:
    import torch
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer

    encoded, meant = pair(name)
    stored = {k: v for file in encoded.glob("*.safetensors") for k, v in load_file(file).items()}
    theirs = FP8BlockDequantizer(targets=["re:.*_proj$"], dtype=torch.float32).process(stored)
    for key, values in load_file(meant / "model.safetensors").items():
        assert torch.equal(theirs[key].float(), values), key


def test_compressed_tensors_reads_the_same_of_modelopt(pair: Pair) -> None:
    """Its converter turns the scale for all upside down, which rounds: near to the last bit, and no further off."""
    import torch
    from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter

    encoded, meant = pair("nvfp4-modelopt")
    stored = {k: v for file in encoded.glob("*.safetensors") for k, v in load_file(file).items()}
    theirs = ModelOptNvfp4Converter(targets=["re:.*_proj$"]).process(stored)
    for key, values in load_file(meant / "model.safetensors").items():
        if encoders.LINEAR.fullmatch(key):
            packed, scale, one = (theirs[f"{key}_{s}"] for s in ("packed", "scale", "global_scale"))
            table = torch.tensor([*encoders.E2M1, *(-v for v in encoders.E2M1)])
            codes = table[torch.stack([packed & 15, packed >> 4], -1).long()].reshape(len(packed), -1, 16)
            found = (codes * (scale.float() / one)[:, :, None]).reshape(values.shape)
            torch.testing.assert_close(found, values, rtol=4e-7, atol=0)


def test_the_gguf_package_reads_the_same_nvfp4(pair: Pair) -> None:
    """`block_nvfp4` holds the codes and scales, only without the scale for all: a third reader of both."""
    import gguf

    encoded, meant = pair("nvfp4-modelopt")
    stored, _ = encoders.read(encoded)
    for key, values in load_file(meant / "model.safetensors").items():
        if not encoders.LINEAR.fullmatch(key):
            continue
        codes = np.stack([stored[key] & 15, stored[key] >> 4], -1).reshape(-1, 4, 2, 8)  # four groups of two halves
        packed = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 32)
        scales = stored[key + "_scale"].view(np.uint8).reshape(-1, 4)
        blocks = np.concatenate([scales, packed], axis=1)  # 64 values that follow each other, over the ends of rows
        theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4).reshape(values.shape)
        np.testing.assert_allclose(theirs * stored[key + "_scale_2"], values.numpy(), rtol=3e-7)


def test_transformers_reads_the_same_single_scale(pair: Pair) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    encoded, meant = pair("fp8-one")
    stored = {k: v for file in encoded.glob("*.safetensors") for k, v in load_file(file).items()}
    for key, values in load_file(meant / "model.safetensors").items():
        if encoders.LINEAR.fullmatch(key):
            scale = stored[key.replace("weight", "weight_scale_inv")]
            assert torch.equal(_dequantize_fp8_weight(stored[key], scale, None, torch.float32), values), key


@pytest.mark.parametrize("name", ["awq", "awq-sym"])
def test_compressed_tensors_reads_the_same_awq(name: str, pair: Pair) -> None:
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    encoded, meant = pair(name)
    stored = {k: v for file in encoded.glob("*.safetensors") for k, v in load_file(file).items()}
    converter = AutoAWQConverter(group_size=32)
    for key, values in load_file(meant / "model.safetensors").items():
        if not encoders.LINEAR.fullmatch(key):
            continue
        base = key.removesuffix("weight")
        codes, scales, zeros = converter._convert_gemm_module(
            *(stored[base + s] for s in ("qweight", "scales", "qzeros"))
        )
        groups = codes.reshape(len(codes), -1, 32).float()
        theirs = (groups - zeros[:, :, None]) * scales[:, :, None].float()
        assert theirs.reshape(values.shape).equal(values), key


@pytest.mark.parametrize("name", ["fp8-block", "int4", "mxfp4", "nvfp4", "gptq-act-order", "awq"])
def test_logits_of_the_values(name: str, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair(name)
    to_gguf(encoded, tmp_path / "m.gguf", "f32")
    assert_close(engine_logits(tmp_path / "m.gguf", tokens()), reference(meant, tokens()))


@pytest.mark.parametrize("name", ["int4", "mxfp4"])
def test_native_files_run(name: str, pair: Pair, tmp_path: Path) -> None:
    """The engine computes with 8-bit activations here: near the float32 reference, and nearer than another 4 bits."""
    encoded, meant = pair(name)
    to_gguf(encoded, tmp_path / "native.gguf", "native")
    to_gguf(meant, tmp_path / "again.gguf", "q4_0")
    expected = reference(meant, tokens()).logits
    native, again = (
        float(np.sqrt(np.mean((engine_logits(tmp_path / n, tokens()) - expected) ** 2)) / np.sqrt(np.mean(expected**2)))
        for n in ("native.gguf", "again.gguf")
    )
    assert native < 0.03 < 2 * native + again
    assert native < again / 2


def test_experts(model: Callable[[str], Path], tmp_path: Path) -> None:
    """Stacked experts, each with its own codes and scales, some of them in another shard."""
    source = model("qwen3_moe")
    folders = encoders.encode(source, tmp_path, "int4")
    for folder, out in zip(folders, ("a.gguf", "b.gguf"), strict=True):
        to_gguf(folder, tmp_path / out, "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    to_gguf(folders[0], tmp_path / "native.gguf", "native")
    result: dict[str, Any] = json.loads((tmp_path / "native.gguf.manifest.json").read_text())
    assert result["lossless"]["changed"] == {}
    assert result["tensors"]["blk.0.ffn_up_exps.weight"] == "q4_0"


@pytest.mark.slow
def test_fused_experts_in_blocks(model: Callable[[str], Path], tmp_path: Path) -> None:
    """FP8 experts in one tensor: blocks do not cross experts."""
    source = model("qwen3_moe-8-experts")
    tensors, _ = encoders.read(source)
    encoded, meant = dict(tensors), dict(tensors)
    for layer in range(8):
        prefix = f"model.layers.{layer}.mlp.experts"
        rows = [
            (
                np.concatenate([tensors[f"{prefix}.{e}.{p}_proj.weight"] for p in ("gate", "up")]),
                tensors[f"{prefix}.{e}.down_proj.weight"],
            )
            for e in range(8)
        ]
        for name, parts in zip(("gate_up_proj", "down_proj"), zip(*rows, strict=True), strict=True):
            made = [encoders.fp8_block(w, block=96) for w in parts]
            encoded[f"{prefix}.{name}"] = np.stack([t["weight"] for t, _ in made])
            encoded[f"{prefix}.{name}_scale_inv"] = np.stack([t["weight_scale_inv"] for t, _ in made])
            meant[f"{prefix}.{name}"] = np.stack([v for _, v in made])
        for e in range(8):
            for p in ("gate", "up", "down"):
                del encoded[f"{prefix}.{e}.{p}_proj.weight"], meant[f"{prefix}.{e}.{p}_proj.weight"]
    config = encoders.FP8 | {"weight_block_size": [96, 96], "modules_to_not_convert": ["self_attn", "lm_head"]}
    encoders.write(source, tmp_path / "a" / source.name, encoded, 1, config)
    encoders.write(source, tmp_path / "b" / source.name, meant, 1, None)
    for n in "ab":
        to_gguf(tmp_path / n / source.name, tmp_path / f"{n}.gguf", "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
