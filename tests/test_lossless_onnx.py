"""Stored codes in an ONNX folder: ONNX Runtime's own MatMulNBits, given the identity, must return the values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Pair, run_cli
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

NAMES = {
    "attn/qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attn/o_proj": ("self_attn.o_proj",),
    "mlp/gate_proj": ("mlp.gate_proj",), "mlp/up_proj": ("mlp.up_proj",), "mlp/down_proj": ("mlp.down_proj",),
}  # fmt: skip


def dequantised(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Node name → float32 [rows, columns] of every MatMulNBits, as ONNX Runtime computes with it in float32."""
    model = onnx.load(str(folder / "model.onnx"))
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in arrays:
            arrays[node.output[0]] = arrays[node.input[0]].astype(np.float32)
    found = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute} | {"accuracy_level": 1}
        weights = [n for n in node.input[1:] if n]
        alone = helper.make_graph(
            [helper.make_node("MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", **settings)], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, settings["K"]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, settings["N"]])],
            [numpy_helper.from_array(arrays[n], n) for n in weights],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(alone, opset_imports=opsets, ir_version=10)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        found[node.name] = session.run(None, {"x": np.eye(settings["K"], dtype=np.float32)})[0].T
    return found


EXACT = ("int4", "int4-channel", "int4-zeros", "gptq-sym", "gptq", "gptq-v2", "awq", "awq-sym")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_every_value_of_every_matrix(name: str, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair(name)
    out = tmp_path / "m"
    result = run_cli("convert", str(encoded), "--to", "onnx", "--quant", "native", "--lossless", "-o", str(out))
    assert result.returncode == 0, result.stderr
    assert "tensors is the checkpoint's" in result.stderr
    expected = load_file(meant / "model.safetensors")
    found = dequantised(out)
    assert len(found) == 2 * len(NAMES)
    for node, values in found.items():
        layer, part = node.removeprefix("/layers.").split("/", 1)
        keys = [f"model.layers.{layer}.{n}.weight" for n in NAMES[part.removesuffix("/MatMulNBits")]]
        np.testing.assert_array_equal(values, np.concatenate([expected[k] for k in keys]), err_msg=node)


@pytest.mark.everyday("gptq*")
@pytest.mark.parametrize(("name", "kind"), [("fp8-block", "f16"), ("gptq-act-order", "f16"), ("mxfp4", "f16")])
def test_the_nearest_is_named_and_measured(name: str, kind: str, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "m"
    options = ("--to", "onnx", "--quant", "native", "-o", str(out))
    refused = run_cli("convert", str(pair(name)[0]), "--lossless", *options)
    assert refused.returncode == 2 and "--lossless: expected a type that holds " in refused.stderr
    result = run_cli("convert", str(pair(name)[0]), *options)
    assert f"become {kind}, the nearest here" in result.stderr
    changed = json.loads((out / "manifest.json").read_text())["lossless"]["changed"]
    assert bool(changed) == (name != "mxfp4")  # float16 happens to hold these
    assert all(0 < d["relative"] < 5e-4 for d in changed.values())


def test_encoders_are_all_proved_somewhere() -> None:
    proved = {"int4-two-groups", "mxfp4", "fp8-block", "fp8-block-bf16", "fp8-channel", "fp8-tensor", "gptq-act-order"}
    proved |= {"fp8-auto", "fp8-one", "fp8-modelopt", "nvfp4", "nvfp4-modelopt"}
    assert proved | set(EXACT) == set(encoders.ENCODERS)
