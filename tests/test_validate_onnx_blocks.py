"""`sampan validate` with ONNX folders of every kind of block: layouts of tensors, experts, latent attention."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx_peer import to_onnx
from safetensors.numpy import load_file
from validating import ONE, cache, findings, kld, run

from sampan.checkpoint import open_folder
from sampan.validate.artifact import open_artifact, open_onnx, read_rows
from sampan.validate.audit import audit, audit_bytes

__all__ = ["cache"]  # a fixture of every test here
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "quant"),
    [("qwen3-odd-widths", "int4_zp"), ("qwen2", "fp16"), ("qwen2", "q4_0"), ("deepseek_v3", "int4"), ("llama", "int8")],
)
def test_every_layout_is_read_back(name: str, quant: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    """Zero points, padded rows, stacked biases, k_b as checkpoints have it."""
    out = to_onnx(model(name), tmp_path / "out", quant).artifact
    report = run(out, model(name), ONE)
    assert findings(report) == {}
    assert len(report["candidates"][0]["tensors"]) == len(json.loads((out / "manifest.json").read_text())["tensors"])


def test_rows_of_a_stacked_tensor(tmp_path: Path) -> None:
    """fp32 rows are the checkpoint's own, from the middle of a stack."""
    t = open_onnx(to_onnx(tiny.FIXTURE, tmp_path / "fp32", "fp32").artifact).tensors["blk.2.attn_v.weight"]
    with t.path.open("rb") as f:
        rows = read_rows(t, f.fileno(), 5, 9)
    stored = load_file(tiny.FIXTURE / "model.safetensors")["model.layers.2.self_attn.v_proj.weight"]
    np.testing.assert_array_equal(rows, stored[5:14].astype(np.float32))


def test_experts_are_found_in_their_turns(model: Callable[[str], Path], tmp_path: Path) -> None:
    """Rows of gate and up take turns in one array."""
    out = to_onnx(model("qwen2_moe"), tmp_path / "moe", "int4").artifact
    t = open_onnx(out).tensors["blk.1.ffn_up_exps.weight"]
    assert (t.step, len(t.shape)) == (2, 3)
    assert findings(run(out, model("qwen2_moe"), ONE)) == {}


@pytest.mark.parametrize(("name", "form"), [("qwen2_moe", "onnx"), ("llama", "gguf")])
def test_an_audit_reads_every_byte_once(
    name: str, form: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where rows take turns too: gate and up of experts in a graph, the halves of Llama's heads in GGUF."""
    path = gguf(name, "q8_0") if form == "gguf" else to_onnx(model(name), tmp_path / "out", "int4").artifact
    artifact, checkpoint = open_artifact(path), open_folder(model(name))
    read: Counter[str] = Counter()
    pread, preadv = os.pread, os.preadv

    def count(fd: int, n: int) -> None:
        read[Path(f"/proc/self/fd/{fd}").readlink().suffix] += n

    def counting(fd: int, n: int, offset: int) -> bytes:
        count(fd, n)
        return pread(fd, n, offset)

    def counting_into(fd: int, buffers: list[memoryview], offset: int) -> int:
        count(fd, sum(b.nbytes for b in buffers))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "pread", counting)
    monkeypatch.setattr(os, "preadv", counting_into)
    audited = audit(checkpoint, artifact)
    assert audited.findings == []
    stored = sum(t.nbytes for t in artifact.tensors.values())
    assert read[".gguf"] + read[".data"] == stored
    source = audit_bytes(checkpoint, artifact) - stored
    assert source <= read[".safetensors"] <= 1.1 * source, "but for rows that it encodes again"


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3-groups"])
def test_experts_that_differ_are_counted(name: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    exact, coarse = (
        run(to_onnx(model(name), tmp_path / q, q).artifact, model(name), ONE)["candidates"][0]["experts"]
        for q in ("fp32", "int4")
    )
    assert exact[0] < 0.05
    assert 0.1 < coarse[1] < coarse[0] < 1


def test_rope_factors_are_the_references(model: Callable[[str], Path], tmp_path: Path) -> None:
    """A graph holds tables; a GGUF file of its weights needs the factors that llama.cpp reads from a tensor."""
    exact = to_onnx(model("llama"), tmp_path / "fp32", "fp32").artifact
    assert kld(run(exact, model("llama"), replace(ONE, weights_only=True)), "weights") < 1e-9
    coarse = to_onnx(model("llama"), tmp_path / "int4", "int4").artifact
    report = run(coarse, model("llama"), replace(ONE, weights_only=True, blame=True))
    assert report["blame"]["kld"] == pytest.approx(kld(report, "weights"), rel=0.2)


def test_latent_attention_runs_as_gguf_has_it(model: Callable[[str], Path], tmp_path: Path) -> None:
    """k_b turned: exact weights drift by nothing, and those of 4 bits by what the graph does."""
    exact = to_onnx(model("deepseek_v3"), tmp_path / "fp32", "fp32").artifact
    assert kld(run(exact, model("deepseek_v3"), replace(ONE, weights_only=True)), "weights") < 1e-9
    coarse = to_onnx(model("deepseek_v3"), tmp_path / "int4", "int4").artifact
    report = run(coarse, model("deepseek_v3"), replace(ONE, parts=True, blame=True))
    assert kld(report, "weights") == pytest.approx(kld(report), rel=0.2)
    assert report["blame"]["kld"] == pytest.approx(kld(report, "weights"), rel=0.2)
    assert "attn_k_b.weight" in [r["group"] for r in report["blame"]["kinds"]]
