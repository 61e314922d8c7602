"""Qualcomm's compiler and emulator: they compute what the processor does, and nothing is left to it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import run_cli
from test_npu import CONTEXT, Model, to_npu

from sampan import qnn
from sampan.convert.formats.onnx import compiled
from sampan.errors import InputError
from sampan.static import TOKENS

needs_qnn = pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="the extra qnn is not installed")


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "it is not installed; pip install"), ("1.24.0", "expected version 2.7 or newer"),
     ("3.0.0", "before 3, found 3.0.0"), ("dev", "found dev")],
)  # fmt: skip
def test_a_missing_or_other_sdk_is_refused(version: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn, "installed", lambda name: version)
    with pytest.raises(InputError, match=f"onnxruntime-qnn: .*{message}"):
        qnn.check()


COMPARE = """
import json, sys
import numpy as np
from pathlib import Path
from sampan import qnn, runtime
from sampan.static import compiled
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
with runtime.open(folder, target=sys.argv[3]) as s:
    engine = s._engine
    ids = s.tokenize("Which city is the capital of Mongolia? Please work out 2 + 38.")
    logits = s.logits(ids)
    engine.keep(0)
    singly = np.concatenate([engine.evaluate([i], 1).copy() for i in ids])
    engine.keep(0)
    last, answer = engine.evaluate(ids, 1)[-1], []
    for _ in range(24):
        answer.append(int(last.argmax()))
        last = engine.evaluate(answer[-1:], 1)[-1].copy()
    providers = engine._sessions[0][1].get_providers()
np.savez(out, logits=logits, singly=singly, answer=answer, providers=providers)
"""


def _compare(folder: Path, out: Path, target: str) -> Any:
    subprocess.run([sys.executable, "-c", COMPARE, str(folder), str(out), target], check=True, timeout=500)
    return np.load(out)


def snr(exact: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """Decibels."""
    a, b = exact.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


@needs_qnn
@pytest.mark.parametrize(("quant", "version", "least"), [("int8", "75", 55), ("int4", "75", 50), ("int4", "73", 50)])
def test_the_emulator_computes_what_the_processor_does(
    quant: str, version: str, least: float, model: Model, tmp_path: Path
) -> None:
    """All outputs of both graphs, 24 greedy tokens, and again in another process."""
    out = tmp_path / "out"
    options = ("--quant", quant, "--target", f"qnn-v{version}", "--context", str(CONTEXT), "-o", str(out))
    done = run_cli("convert", str(model("trained")), "--to", "onnx", *options)
    assert done.returncode == 0, done.stderr
    exact = _compare(out, tmp_path / "cpu.npz", "cpu")
    found = _compare(out, tmp_path / "qnn.npz", "qnn")
    again = _compare(out, tmp_path / "again.npz", "qnn")
    assert qnn.PROVIDER in found["providers"] and list(exact["providers"]) == ["CPUExecutionProvider"]
    for key in ("logits", "singly"):
        assert snr(exact[key], found[key]) >= least, key
        assert np.array_equal(found[key], again[key]), "a reload changes nothing"
    assert list(found["answer"]) == list(exact["answer"])
    made = json.loads((out / "manifest.json").read_text())
    assert set(made["npu"]["compiled"]) == {version}
    for n in TOKENS:  # each has a context of its own: shared ones do not reload
        assert [x.op_type for x in onnx.load(out / f"part-1.{n}.v{version}.onnx").graph.node] == ["EPContext"]
    contexts = [qnn.contexts(out / f"part-1.{n}.v{version}.onnx")[0] for n in TOKENS]
    assert len(set(contexts)) == 2 and all(name in made["files"] for name in contexts)
    shown = run_cli("inspect", str(out))
    assert shown.returncode == 0 and f"HTP v{version}" in shown.stdout and "present_key.0" in shown.stdout


@needs_qnn
def test_a_graph_that_the_npu_cannot_take_is_refused_not_run_elsewhere(tmp_path: Path) -> None:
    """With `providers=[…]` of its name ONNX Runtime takes the CPU and says nothing."""
    info = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"]), onnx.helper.make_node("Trilu", ["y"], ["z"])]
    edges = [info(n, onnx.TensorProto.FLOAT, [4, 4]) for n in "xz"]
    graph = onnx.helper.make_graph(nodes, "g", edges[:1], edges[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), tmp_path / "g.onnx")
    code = (
        "import sys; from pathlib import Path; from sampan import qnn\nfrom sampan.errors import InputError\n"
        "try: qnn.session(Path(sys.argv[1]), '75')\nexcept InputError as e: print(e)\n"
        "import onnxruntime as ort\n"
        "print(ort.InferenceSession(sys.argv[1], providers=[qnn.PROVIDER]).get_providers())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "g.onnx")], capture_output=True, text=True)
    assert "QNN cannot take all of it for HTP v75" in done.stdout, done.stderr
    assert "['CPUExecutionProvider']" in done.stdout, "the trap is still there"


@needs_qnn
def test_options_are_ones_that_the_provider_knows() -> None:
    """It accepts any key, so a misspelt one would do nothing: each stands in its library."""
    import onnxruntime_qnn

    library = Path(onnxruntime_qnn.get_library_path()).read_bytes()
    for key in qnn.options("75"):
        assert key.encode() in library, key
    assert b"htp_architecture" not in library


@needs_qnn
def test_a_part_over_its_limit_is_refused(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "FIXED", 0)
    monkeypatch.setattr(compiled, "SPARE", -0.9999)
    with pytest.raises(InputError, match=r"part-1\.128\.v75\.onnx: expected a part of about .* smaller --split-size"):
        to_npu(model("trained"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
