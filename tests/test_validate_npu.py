"""`sampan validate` with folders for NPUs: limits of their bits, targets, and which activations need 16 bits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from conftest import run_cli
from test_npu import Model, to_npu
from validating import ONE, cache, run

from sampan import qnn, runtime
from sampan.convert.formats.onnx import compiled
from sampan.errors import InputError
from sampan.runtime import EngineOptions
from sampan.static import read_quantities
from sampan.validate import edges
from sampan.validate.artifact import open_artifact
from sampan.validate.html import html_report
from sampan.validate.text import text_report

__all__ = ["cache"]  # a fixture of every test here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The trained model at a16w4, not compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compiled", lambda *a: ({}, []))
        if find_spec("onnxruntime_qnn") is None:
            patch.setattr(qnn, "check", lambda: "none")
        yield to_npu(tiny.FIXTURE, tmp_path_factory.mktemp("npu") / "out", "a16w4").out


@pytest.mark.slow
def test_limits_follow_the_bits_of_its_weights(folder: Path) -> None:
    """Not those of the embedding's rows, which have 16."""
    artifact = open_artifact(folder)
    assert artifact.nominal_bits == 4.25 < artifact.bits_per_weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "hexagon"}, "target: expected one of .*cpu.*qnn.*, found 'hexagon'"),
        ({"target": "qnn"}, "it holds no compiled graphs; convert it again with --target qnn"),
        ({"kv": "f16"}, "--kv: expected q8_0, the cache of the ONNX folder .*, found f16"),
        ({"parts": True}, "--parts: expected a candidate whose manifest names its tensors"),
    ],
)
@pytest.mark.slow
def test_options_that_do_not_fit_a_folder(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(folder, options=replace(ONE, **options))


@pytest.mark.slow
def test_a_folder_of_floats_has_no_bits_to_blame(folder: Path, tmp_path: Path) -> None:
    floats = Path(shutil.copytree(folder, tmp_path / "floats"))
    tiny.edit_json(floats / "static.json", target="rk3588", type="fp16", far=-1e4)
    for options, message in (
        ({"blame": True}, "--blame: expected a folder whose activations are integers, found .* with floats"),
        ({"kv": "q8_0"}, "--kv: expected f16, the cache of the ONNX folder .*, found q8_0"),
    ):
        with pytest.raises(InputError, match=message):
            run(floats, options=replace(ONE, **options))


def test_a_target_wants_its_own_folders(gguf: Any) -> None:
    file = gguf("trained", "q4_0")
    with pytest.raises(
        InputError, match=r"q4_0.*: expected a folder with static\.json, found none; convert it with --to"
    ):
        run(file, options=replace(ONE, target="qnn"))
    done = run_cli("validate", str(tiny.FIXTURE), str(file), "--target", "qnn")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr


def edge(folder: Path, name: str, names: frozenset[str], feeds: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What follows after an activation of the graph of one token, with those of `names` at 8 bits."""
    import onnxruntime as ort

    model = onnx.load(folder / "part-1.1.onnx", load_external_data=False)
    edges.coarsen(model, names)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    (value,) = session.run([name], feeds)
    return value


@pytest.mark.slow
def test_an_activation_at_8_bits_has_256_values(folder: Path) -> None:
    """Inside of a graph, at its beginning and at its end; half a step of 8 bits from what it was, at most."""
    rng = np.random.default_rng(0)
    graph = onnx.load(folder / "part-1.1.onnx", load_external_data=False).graph
    quantities, feeds = read_quantities(folder), {}
    for i in graph.input:
        shape = [d.dim_value for d in i.type.tensor_type.shape.dim]
        if i.name == "hidden":
            feeds[i.name] = rng.standard_normal(shape).astype(np.float32)
            continue
        bits, _, zero = quantities[i.name]
        spread = 2.0 ** (bits - 3) * rng.standard_normal(shape)
        feeds[i.name] = np.clip(zero + spread, 0, 2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)
    known = edges.activations(folder)
    inside = next(n for n in known if "layers.0/" in n and "up_proj" in n)
    assert "logits" in known and "cos" in known
    assert not any(n.startswith(("past_", "present_", "hidden")) or n.endswith("/sum") for n in known)
    for name in (inside, "cos"):
        behind = f"{name}/DequantizeLinear/output_0"
        fine, coarse = (edge(folder, behind, frozenset(n), feeds) for n in ((), (name,)))
        step = 257 * quantities[name][1]
        assert len(np.unique(fine)) > len(np.unique(coarse)) > 10
        np.testing.assert_allclose(coarse / step, np.rint(coarse / step), atol=1e-3)
        assert 0.2 * step < np.abs(coarse - fine).max() < 0.51 * step
    ids = list(range(40, 60))
    with runtime.open(folder) as s, edges.open_coarse(folder, EngineOptions(), ["logits"]) as t:
        a, b = s.logits(ids), t.logits(ids)
    assert len(np.unique(a)) > 1000 and len(np.unique(b)) <= 256
    assert np.abs(a - b).max() < 0.51 * 257 * quantities["logits"][1]


@pytest.mark.slow
def test_blame_names_activations_that_need_16_bits(folder: Path, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """A mask of two values loses nothing at 8 bits, what norms give loses much."""
    known = edges.activations(folder)
    few = ["mask", "logits", *(n for n in known if "input_layernorm" in n or "layers.1/mlp/gate_proj" in n)]
    monkeypatch.setattr(edges, "activations", lambda path: few)
    monkeypatch.setattr(edges, "NEEDED", 0.01)  # a tenth needs none of these
    report = run(folder, options=replace(ONE, blame=True))
    blame = report["blame"]
    more = {p: {r["group"]: r["more"] for r in blame[p]} for p in ("kinds", "layers")}
    assert set(more["kinds"]) >= {"mask", "logits", "mlp/gate_proj/Gemm"} or "mlp/gate_proj/MatMul" in more["kinds"]
    assert abs(more["kinds"]["mask"]) < 1e-4 * blame["kld"]
    assert list(more["kinds"].values()) == sorted(more["kinds"].values(), reverse=True)
    assert blame["keep"] == [n for n, v in more["kinds"].items() if v > 0.01 * blame["kld"]] and blame["keep"], more
    assert set(more["layers"]) >= {"layer 0", "layer 1", "layer 3", "mask", "logits"}
    for shown in (text_report(report), html_report(report)):
        assert "KLD more at 8 bits" in shown and f": {', '.join(blame['keep'])}" in shown
