"""Stored codes that reach the output unchanged, judged by other readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import encoders
import gguf
import numpy as np
import pytest
from conftest import Pair, run_cli, to_gguf
from safetensors.numpy import load_file

PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def matrices(path: Path) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """Checkpoint name → type and values of the blocks' matrices, dequantised by the gguf package."""
    found = {}
    for t in gguf.GGUFReader(path).tensors:
        _, layer, part, *_ = [*t.name.split("."), "", ""]
        if part in PARTS:
            name = f"model.layers.{layer}.{PARTS[part]}.weight"
            found[name] = (t.tensor_type.name, gguf.quants.dequantize(t.data, t.tensor_type))
    return found


def manifest(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.with_name(path.name + ".manifest.json").read_text())
    return value


@pytest.mark.parametrize(
    ("name", "quant", "kind"),
    [
        ("int4", "native", "Q4_0"), ("int4", "q4_0", "Q4_0"), ("int4-two-groups", "native", "Q4_0"),
        ("int4-channel", "native", "Q4_0"), ("gptq-sym", "native", "Q4_0"), ("awq-sym", "native", "Q4_0"),
        ("mxfp4", "native", "MXFP4"),
        ("fp8-block", "f32", "F32"), ("awq", "f32", "F32"),
    ],
)  # fmt: skip
def test_every_value_of_every_tensor(name: str, quant: str, kind: str, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair(name)
    to_gguf(encoded, tmp_path / "m.gguf", quant)
    expected = load_file(meant / "model.safetensors")
    found = matrices(tmp_path / "m.gguf")
    assert found.keys() == {k for k in expected if encoders.LINEAR.fullmatch(k)}
    for key, (type_, values) in found.items():
        assert type_ == kind, key
        np.testing.assert_array_equal(values, expected[key], err_msg=key)


def test_another_way_to_4_bits_loses_what_native_keeps(pair: Pair, tmp_path: Path) -> None:
    """The comparison can fail: the same values encoded again as Q4_0 are others."""
    _, meant = pair("int4")
    to_gguf(meant, tmp_path / "m.gguf", "q4_0")
    expected = load_file(meant / "model.safetensors")
    assert all((values != expected[key]).any() for key, (_, values) in matrices(tmp_path / "m.gguf").items())


def test_lossless_says_so_in_the_manifest(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    result = run_cli("convert", str(pair("int4")[0]), "--quant", "native", "--lossless", "-o", str(out))
    assert result.returncode == 0, result.stderr
    assert "every value of all 25 tensors is the checkpoint's" in result.stderr
    assert manifest(out)["lossless"] == {"exact": 25, "changed": {}}
    assert manifest(out)["stored"] == {"bf16": 11, "pack_quantized 1×32": 14}


@pytest.mark.everyday("gptq-*")
@pytest.mark.parametrize(
    ("name", "quant", "stored", "found"),
    [
        ("fp8-block", "native", "fp8 128×128", "bf16 for blk.0.attn_q.weight and 13 more; try --quant f32"),
        ("gptq", "native", "gptq 1×32", "f16 for blk.0.attn_q.weight and 13 more; try --quant f32"),
        ("awq", "native", "awq 1×32", "f16 for blk.0.attn_q.weight and 13 more; try --quant f32"),
        ("int4", "q8_0", "bf16", "q8_0 for token_embd.weight and 1 more; try --quant native"),
    ],
)
def test_lossless_refuses_the_nearest(
    name: str, quant: str, stored: str, found: str, pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "m.gguf"
    result = run_cli("convert", str(pair(name)[0]), "--quant", quant, "--lossless", "-o", str(out))
    assert result.returncode == 2
    assert f"--lossless: expected a type that holds {stored} exactly, found {found}" in result.stderr
    assert not out.parent.exists()


@pytest.mark.everyday("nvfp4-f16")
@pytest.mark.parametrize(
    ("name", "kind"), [("fp8-block", "bf16"), ("gptq", "f16"), ("nvfp4", "f16"), ("gptq-act-order", "f16")]
)
def test_the_nearest_is_named_and_measured(name: str, kind: str, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair(name)
    out = tmp_path / "m.gguf"
    result = run_cli("convert", str(encoded), "--quant", "native", "-o", str(out))
    first, *_, last = [line for line in result.stderr.splitlines() if "tensors" in line]
    assert first.startswith("14 tensors stored as ") and first.endswith(f" become {kind}, the nearest here")
    assert last.startswith("11 tensors are the checkpoint's in every value, 14 are not: relative error up to ")
    expected, found = load_file(meant / "model.safetensors"), matrices(out)
    changed = manifest(out)["lossless"]["changed"]
    assert len(changed) == 14
    for name_, difference in changed.items():
        _, layer, part, _ = name_.split(".")
        key = f"model.layers.{layer}.{PARTS[part]}.weight"
        error = found[key][1].astype(np.float64) - expected[key]
        relative = np.sqrt((error**2).sum() / (expected[key].astype(np.float64) ** 2).sum())
        assert difference["relative"] == pytest.approx(relative, rel=1e-4)
        assert difference["largest"] == np.abs(error).max()
        assert (difference["values"], difference["changed"]) == (error.size, np.count_nonzero(error))


def with_scale(folder: Path, target: Path, value: float) -> Path:
    """A copy of the int4 checkpoint in which one scale is `value`."""
    tensors, config = encoders.read(folder)
    tensors[SCALE][3, 1] = value
    encoders.write(folder, target, tensors, 1, config)
    return target


SCALE = "model.layers.1.mlp.up_proj.weight_scale"


@pytest.mark.everyday("5*")
@pytest.mark.parametrize("value", [2.0**-24, -(2.0**-17) * 1.0078125, 255 * 2.0**-24, 2.0**15])
def test_scales_at_the_ends_of_float16(value: float, pair: Pair, tmp_path: Path) -> None:
    folder = with_scale(pair("int4")[0], tmp_path / "m", value)
    result = run_cli("convert", str(folder), "--quant", "native", "--lossless", "-o", str(tmp_path / "m.gguf"))
    assert result.returncode == 0, result.stderr


def test_a_scale_that_float16_rounds(pair: Pair, tmp_path: Path) -> None:
    """2^-25 · 1.5 lies between two numbers of float16: that block changes, and only that one."""
    folder = with_scale(pair("int4")[0], tmp_path / "m", 1.5 * 2.0**-25)
    out = tmp_path / "m.gguf"
    refused = run_cli("convert", str(folder), "--quant", "native", "--lossless", "-o", str(out))
    assert refused.returncode == 2
    name = "model.safetensors: model.layers.1.mlp.up_proj.weight_packed"
    assert f"{name}: expected values that q4_0 holds, for --lossless, found " in refused.stderr
    assert not out.exists()
    assert run_cli("convert", str(folder), "--quant", "native", "-o", str(out)).returncode == 0
    changed = manifest(out)["lossless"]["changed"]
    assert changed.keys() == {"blk.1.ffn_up.weight"}
    assert 1 <= changed["blk.1.ffn_up.weight"]["changed"] <= 32
    assert changed["blk.1.ffn_up.weight"]["largest"] <= 8 * 2.0**-26


def test_a_scale_beyond_float16(pair: Pair, tmp_path: Path) -> None:
    folder = with_scale(pair("int4")[0], tmp_path / "m", 1e6)
    result = run_cli("convert", str(folder), "--quant", "native", "-o", str(tmp_path / "m.gguf"))
    assert result.returncode == 2
    assert "weight_packed: its values do not fit q4_0 (a scale overflows float16)" in result.stderr


def test_the_plan_names_what_is_stored(pair: Pair) -> None:
    result = run_cli("convert", str(pair("fp8-block")[0]), "--quant", "native", "--plan")
    assert "blk.0.attn_q.weight        160 × 160  fp8 128×128  bf16" in result.stdout
    assert "not exact        14 tensors fp8 128×128 → bf16" in result.stdout
    data = json.loads(run_cli("convert", str(pair("int4")[0]), "--quant", "native", "--plan", "--json").stdout)
    assert data["stored"] == {"bf16": 11, "pack_quantized 1×32": 14}
    assert data["tensors"][2]["stored"] == "pack_quantized 1×32"


def test_inspect_names_what_is_stored(pair: Pair) -> None:
    data = json.loads(run_cli("inspect", str(pair("gptq")[0]), "--json").stdout)
    assert {k: v["tensors"] for k, v in data["types"].items()} == {"bf16": 11, "gptq 1×32": 14}
    assert data["parameters"] == 2048 * 160 * 2 + 430080 + 160 * 5 + 80 * 4
