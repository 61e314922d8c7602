"""Quantised checkpoints that contradict themselves: one clear line each, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import pytest
from conftest import Pair, run_cli

P = "model.layers.1.mlp.up_proj."
Edit = Callable[[dict[str, Any], dict[str, Any]], object]


def setting(**changes: Any) -> Edit:
    return lambda t, c: c.update(changes)


def value(key: str, index: Any, number: Any) -> Edit:
    """One value of a tensor becomes `number`."""

    def edit(t: dict[str, Any], c: dict[str, Any]) -> None:
        t[P + key][index] = number

    return edit


def without(key: str) -> Edit:
    return lambda t, c: t.pop(P + key)


def shaped(key: str, change: Callable[[Any], Any]) -> Edit:
    return lambda t, c: t.update({P + key: np.ascontiguousarray(change(t[P + key]))})


def plain(t: dict[str, Any], c: dict[str, Any]) -> None:
    """One module lies there in bfloat16."""
    for key in [k for k in t if k.startswith(P)]:
        del t[key]
    t[P + "weight"] = np.ones((288, 160), encoders.BF16)


def orphan(t: dict[str, Any], c: dict[str, Any]) -> None:
    t["model.norm.weight_scale_inv"] = np.ones((1, 1), np.float32)


def other_bits(t: dict[str, Any], c: dict[str, Any]) -> None:
    c["config_groups"]["group_0"]["weights"]["group_size"] = 16


CASES: dict[str, tuple[str, Edit, str]] = {
    "missing-scale": ("fp8-block", without("weight_scale_inv"),
        f"{P}weight: expected {P}weight_scale_inv beside it, found none of that name in any shard"),
    "missing-channel-scale": ("fp8-channel", without("weight_scale"), f"{P}weight: expected {P}weight_scale beside it"),
    "missing-shape": ("int4", without("weight_shape"), f"{P}weight_packed: expected {P}weight_shape beside it"),
    "missing-zeros": ("gptq", without("qzeros"), f"{P}qweight: expected {P}qzeros beside it"),
    "missing-order": ("gptq-act-order", without("g_idx"), f"{P}qweight: expected {P}g_idx beside it"),
    "missing-codes": ("int4", without("weight_packed"),
        "expected the tensor model.layers.1.mlp.up_proj.weight, found none"),
    "orphan-scale": ("fp8-block", orphan,
        "model.norm.weight_scale_inv: expected only tensors that qwen3 knows, found one that no rule claims"),
    "scale-of-other-blocks": ("fp8-block", shaped("weight_scale_inv", lambda s: s[:, :1]),
        f"{P}weight_scale_inv: expected shape [3, 2] for blocks of 128×128, found [3, 1]"),
    "scale-of-another-dtype": ("fp8-block", shaped("weight_scale_inv", lambda s: s.astype(np.int32)),
        f"{P}weight_scale_inv: expected a dtype among F32, BF16, F16, found I32"),
    "other-blocks-in-the-config": ("fp8-block", setting(weight_block_size=[64, 64]),
        "weight_scale_inv: expected shape [3, 5] for blocks of 64×64, found [2, 3]"),
    "nan-scale": ("fp8-block", value("weight_scale_inv", (1, 0), np.nan),
        f"{P}weight: expected finite values, found nan in row 128"),
    "nan-code": ("fp8-block", lambda t, c: t[P + "weight"].view(np.uint8).__setitem__((5, 5), 0x7F),
        f"{P}weight: expected finite values, found nan in row 5"),
    "infinite-scale": ("int4", value("weight_scale", (7, 0), np.inf),
        f"{P}weight_packed: expected finite values, found "),
    "nan-exponent": ("mxfp4", value("weight_scale", (9, 0), 255),
        f"{P}weight_packed: expected finite values, found nan in row 9"),
    "missing-global-scale": ("nvfp4", without("weight_global_scale"),
        f"{P}weight_packed: expected {P}weight_global_scale beside it"),
    "missing-second-scale": ("nvfp4-modelopt", without("weight_scale_2"),
        f"{P}weight: expected {P}weight_scale_2 beside it"),
    "scale-of-another-dtype-nvfp4": ("nvfp4", shaped("weight_scale", lambda s: s.view(np.uint8)),
        f"{P}weight_scale: expected a dtype among F8_E4M3, found U8"),
    "scale-of-other-groups": ("nvfp4", shaped("weight_scale", lambda s: s[:, ::2]),
        f"{P}weight_scale: expected shape [288, 10] for groups of 16, found [288, 5]"),
    "many-global-scales": ("nvfp4-modelopt", shaped("weight_scale_2", lambda s: np.ones(288, np.float32)),
        f"{P}weight_scale_2: expected shape [1], found [288]"),
    "nan-scale-nvfp4": ("nvfp4", lambda t, c: t[P + "weight_scale"].view(np.uint8).__setitem__((9, 0), 0x7F),
        f"{P}weight_packed: expected finite values, found nan in row 9"),
    "zero-global-scale": ("nvfp4", value("weight_global_scale", 0, 0), f"{P}weight_packed: expected finite values"),
    "infinite-second-scale": ("nvfp4-modelopt", value("weight_scale_2", (), np.inf),
        f"{P}weight: expected finite values, found "),
    "fp8-promised-nvfp4": ("fp8-modelopt", setting(quant_algo="NVFP4", config_groups=None),
        "expected a dtype among BF16, F16, F32, found F8_E4M3"),
    "nvfp4-promised-fp8": ("nvfp4-modelopt", setting(quant_algo="FP8", config_groups=None),
        "q_proj.weight: expected shape [160, 160], found [160, 80]"),
    "other-group-size": ("int4", other_bits, "weight_scale: expected shape [160, 18] for groups of 16, found [160, 9]"),
    "other-group-size-gptq": ("gptq", setting(group_size=16),
        "scales: expected shape [18, 160] for groups of 16, found [9, 160]"),
    "group-size-that-does-not-divide": ("awq", setting(group_size=128),
        "qweight: expected columns in groups of 128, found 288 columns"),
    "shape-that-lies": ("int4", value("weight_shape", 1, 161),
        f"{P}weight_shape: expected [288, 160], found [288, 161]"),
    "codes-of-another-dtype": ("int4", shaped("weight_packed", lambda w: w.view(np.uint32)),
        f"{P}weight_packed: expected the dtype I32, found U32"),
    "zero-point-against-sym": ("gptq", setting(sym=True),
        "qzeros: expected the zero point 8 everywhere, as sym says, found "),
    "zero-point-of-16": ("gptq", value("qzeros", (0, 0), -1),
        f"{P}qzeros: expected zero points below 15 in the format gptq, found 15, which runtimes read as 0 or as 16"),
    "order-against-desc-act": ("gptq-act-order", setting(desc_act=False),
        "g_idx: expected groups in order, since desc_act is false, found another order"),
    "order-beyond-the-groups": ("gptq-act-order", value("g_idx", 3, 99),
        f"{P}g_idx: expected groups from 0 to 4, found 0 to 99"),
    "listed-as-plain": ("fp8-block", setting(modules_to_not_convert=["model.layers.1.mlp.up_proj"]),
        f"{P}weight: expected plain numbers, as quantization_config lists it, found fp8 codes"),
    "ignored-by-pattern": ("int4", setting(ignore=["re:.*layers\\.1\\.mlp\\.(gate|up)_proj$"]),
        "gate_proj.weight_packed: expected plain numbers, as quantization_config lists it, found pack_quantized codes"),
    "plain-though-promised": ("int4", plain,
        f"{P}weight: expected pack_quantized codes, as quantization_config says, found plain BF16"),
    "two-storages": ("gptq", lambda t, c: t.update({P + "weight": np.ones((288, 160), encoders.BF16)}),
        f"{P}weight: expected one storage, {P}qweight, found two"),
    "no-config": ("fp8-block", lambda t, c: c.clear(), "weight: expected a dtype among BF16, F16, F32, found F8_E4M3"),
    "another-method": ("gptq", lambda t, c: [c.clear(), c.update(encoders.AWQ)],
        "qweight: expected columns in groups of 32, found 36 columns"),
}  # fmt: skip


@pytest.mark.everyday(
    "missing-scale",
    "orphan-scale",
    "nan-*",
    "nvfp4-promised-fp8",
    "order-beyond-the-groups",
    "two-storages",
    "another-method",
)
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(case: str, pair: Pair, tmp_path: Path) -> None:
    name, edit, line = CASES[case]
    source = pair(name)[0]
    tensors, config = encoders.read(source)
    edit(tensors, config)
    encoders.write(source, tmp_path / "m", tensors, 1, config)
    out = tmp_path / "out" / "m.gguf"
    result = run_cli("convert", str(tmp_path / "m"), "--quant", "q8_0", "-o", str(out))
    assert result.returncode == 2, result.stderr
    (error,) = result.stderr.strip().splitlines()
    assert line in error
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_modules_that_the_config_leaves_out_may_be_plain(pair: Pair, tmp_path: Path) -> None:
    source = pair("int4")[0]
    tensors, config = encoders.read(source)
    plain(tensors, config)
    config["ignore"].append("re:.*layers.1.mlp.up_proj$")
    encoders.write(source, tmp_path / "m", tensors, 1, config)
    result = run_cli("convert", str(tmp_path / "m"), "--quant", "native", "--lossless", "-o", str(tmp_path / "m.gguf"))
    assert result.returncode == 0, result.stderr


def test_a_config_nested_in_text_config(pair: Pair, tmp_path: Path) -> None:
    source = pair("int4")[0]
    encoders.write(source, tmp_path / source.name, encoders.read(source)[0], 1, None)
    path = tmp_path / source.name / "config.json"
    config = json.loads((source / "config.json").read_text())
    nested = {"text_config": {"quantization_config": config.pop("quantization_config")}}
    path.write_text(json.dumps(config | nested))
    for folder, out in ((source, "a.gguf"), (tmp_path / source.name, "b.gguf")):
        assert run_cli("convert", str(folder), "--quant", "native", "-o", str(tmp_path / out)).returncode == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
