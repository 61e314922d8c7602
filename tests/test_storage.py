"""Quantised checkpoints: what is read is what the codes mean, and the output is that of the plain checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import encoders
import pytest
from conftest import Pair, to_gguf

from sampan.checkpoint import open_folder
from sampan.validate.artifact import open_gguf
from sampan.validate.audit import audit


@pytest.mark.everyday("fp8-block", "int4", "mxfp4", "nvfp4", "gptq-act-order", "awq")
@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_the_output_is_that_of_the_values(name: str, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair(name)
    for quant in ("f32", "q8_0", "q4_k_m"):
        to_gguf(encoded, tmp_path / "encoded.gguf", quant)
        to_gguf(meant, tmp_path / "meant.gguf", quant)
        assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes(), quant


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8-block", "int4", "gptq"])
@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v3-no-q-lora"])
def test_latent_attention(name: str, family: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    """kv_b is cut by heads, in the middle of blocks, and k's rows are transposed."""
    encoded, meant = encoders.encode(model(family), tmp_path, name)
    for quant in ("f32", "q8_0"):
        to_gguf(encoded, tmp_path / "encoded.gguf", quant)
        to_gguf(meant, tmp_path / "meant.gguf", quant)
        assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes(), quant
    to_gguf(encoded, tmp_path / "native.gguf", "native")
    found = audit(open_folder(encoded), open_gguf(tmp_path / "native.gguf"))
    assert found.findings == [] and max(t.relative for t in found.tensors) < 0.003
    types = {t.name.rpartition("attn_")[2]: t.type for t in found.tensors if "attn_" in t.name}
    assert types["k_b.weight"] == {"fp8-block": "bf16", "int4": "f16", "gptq": "f16"}[name]
    assert types["v_b.weight"] == {"fp8-block": "bf16", "int4": "q4_0", "gptq": "f16"}[name]
