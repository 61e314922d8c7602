"""The residual stream of NPU folders: floats, since one token may be a thousand times as large as all others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from reference import reference
from test_logits import tokens
from test_npu import Model, sdk, to_npu, uncompiled

from sampan import runtime
from sampan.convert.formats.onnx import ranges
from sampan.convert.formats.onnx.calibration import encoded
from sampan.convert.formats.onnx.forms.static import Static
from sampan.errors import InputError
from sampan.static import read_quantities

__all__ = ["sdk", "uncompiled"]  # fixtures of the tests here
CHANNEL = 7


def with_huge_token(source: Path, out: Path, value: float) -> tuple[Path, list[int]]:
    """A checkpoint with a token that has `value` in a channel that only the size of a norm depends on, and a text.

    The token begins this text and one of those that ranges come from.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, out)
    first = encoded(out, 2048, 1, 1)[0][0][0]
    (file,), ids = out.glob("*.safetensors"), [int(first), *tokens()[:139]]
    stored = load_file(file)
    stored["model.embed_tokens.weight"][ids[0], CHANNEL] = value
    for name in (n for n in stored if n.endswith("norm.weight")):
        stored[name][CHANNEL] = 0
    save_file(stored, file, metadata={"format": "pt"})
    return out, ids


def decibels(folder: Path, source: Path, ids: list[int]) -> float:
    exact = reference(source, ids).logits
    with runtime.open(folder) as session:
        error = np.square(session.logits(ids) - exact).sum() / np.square(exact).sum()
    return float(-10 * np.log10(error))


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_a_huge_token_takes_no_codes_of_others(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first token of a real Qwen2.5, which reaches 3,671 in layers 3 to 26; others stay below 22."""
    source, ids = with_huge_token(model("llama"), tmp_path / "source", 3000)
    found = decibels(to_npu(source, tmp_path / "out").out, source, ids)
    monkeypatch.setattr(Static, "floats", property(lambda self: ["hidden"], lambda self, value: None), raising=False)
    codes = decibels(to_npu(source, tmp_path / "codes").out, source, ids)
    print(f"{found:.1f} dB with floats, {codes:.1f} dB with codes")
    assert found > 28 and found > codes + 6


@pytest.mark.usefixtures("uncompiled")
def test_sums_are_floats_and_have_no_quantity(model: Model, tmp_path: Path) -> None:
    out = to_npu(model("trained"), tmp_path / "out", split=2_500_000).out
    assert not [n for n in read_quantities(out) if n.endswith("/sum") or n == "hidden"]
    sums = 0
    for path in out.glob("part-*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        edges = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        floats = [n for n in edges if n.endswith("/sum") or n == "hidden"]
        assert all(edges[n] == onnx.TensorProto.FLOAT for n in floats)
        closed = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
        assert floats and not closed & {*floats}
        sums += len(floats)
    assert sums == 2 * (2 * 4 + 1 + 1), "two of each layer, the input, and one that goes from part to part"


@pytest.mark.usefixtures("uncompiled")
def test_what_float16_does_not_hold_is_refused(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "FINITE", 2999.0)  # the embedding itself is float16
    source, _ = with_huge_token(model("llama"), tmp_path / "source", 3000)
    with pytest.raises(InputError, match=r"sum: expected values that the NPU's float16 holds, up to 2999, found 300\d"):
        to_npu(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
