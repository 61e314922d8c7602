"""Qualcomm's compiler and emulator: they compute what the processor does, and nothing is left to it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import stats_files
from conftest import run_cli
from test_npu import CONTEXT, Model, to_npu

from sampan import qnn, runtime
from sampan.convert.formats.onnx import compiled
from sampan.errors import InputError
from sampan.quantize.stats import write_stats
from sampan.static import TOKENS, read_quantities
from sampan.validate.windows import built_in

Gguf = Callable[[str, str], Path]
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


KNOWN = "from sampan import qnn; qnn.check = lambda: 'none'"  # what is refused here is refused without the package


def command(patch: str, *options: str, source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`sampan convert` in a process of its own, after a line that changes something."""
    code = f"{patch}\nfrom sampan.cli import main; main()"
    arguments = ("convert", str(source), "-o", str(out), *options)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)


COMPARE = """
import json, sys
import numpy as np
from pathlib import Path
from sampan import qnn, runtime
from sampan.static import compiled
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
kept = {}
class Kept:
    def __init__(self, session, size):
        self.session, self.size = session, size
    def run(self, names, feeds):
        values = self.session.run(names, feeds)
        for name, value in zip(names, values):
            kept.setdefault(f"{self.size}:{name}", []).append(value.copy())
        return values
    def __getattr__(self, name):
        return getattr(self.session, name)
with runtime.open(folder, target=sys.argv[3]) as s:
    engine = s._engine
    plain = engine._sessions
    engine._sessions = [{n: Kept(x, n) for n, x in part.items()} for part in plain]
    ids = s.tokenize("Which city is the capital of Mongolia? Please work out 2 + 38.")
    logits = s.logits(ids)
    engine.keep(0)
    singly = np.concatenate([engine.evaluate([i], 1).copy() for i in ids])
    engine._sessions = plain
    engine.keep(0)
    last, answer = engine.evaluate(ids, 1)[-1], []
    for _ in range(24):
        answer.append(int(last.argmax()))
        last = engine.evaluate(answer[-1:], 1)[-1].copy()
    providers = engine._sessions[0][1].get_providers()
kept = {name: np.stack(codes) for name, codes in kept.items()}
np.savez(out, logits=logits, singly=singly, answer=answer, providers=providers, **kept)
"""


def _compare(folder: Path, out: Path, target: str) -> Any:
    subprocess.run([sys.executable, "-c", COMPARE, str(folder), str(out), target], check=True, timeout=500)
    return np.load(out)


def _check_outputs(exact: Any, found: Any, folder: Path, least: float) -> None:
    """Every output of both graphs, over all calls. Of those of 8 bits few codes differ, and by one, which is all that 8
    bits can show of a smaller difference.
    """
    quantities = read_quantities(folder)
    for key in (k for k in exact.files if ":" in k):
        bits, scale, zero = quantities[key.split(":")[1]]
        a, b = (run[key].astype(np.float64) for run in (exact, found))
        decibels, differ = snr(scale * (a - zero), scale * (b - zero)), float((a != b).mean())
        print(f"{key}: {bits} bits, {decibels:.1f} dB, {100 * differ:.2f} % of the codes differ")
        if bits == 8:
            assert np.abs(a - b).max() <= 1 and differ < 0.05, key
        else:
            assert decibels >= least, key


def snr(exact: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """Decibels."""
    a, b = exact.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


@needs_qnn
@pytest.mark.slow
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
        print(f"{key}: {(decibels := snr(exact[key], found[key])):.1f} dB")
        assert decibels >= least, key
    _check_outputs(exact, found, out, least)
    for key in found.files:
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
@pytest.mark.slow
def test_validate_runs_the_emulator_and_the_processor(model: Model, tmp_path: Path) -> None:
    """On one window; both have nearly one drift, since they compute one thing."""
    out, report, text = tmp_path / "out", tmp_path / "report.json", tmp_path / "zh.txt"
    options = ("--quant", "int4", "--target", "qnn-v75", "--context", str(CONTEXT), "-o", str(out))
    done = run_cli("convert", str(model("trained")), "--to", "onnx", *options)
    assert done.returncode == 0, done.stderr
    text.write_text(built_in("zh.txt"), encoding="utf-8")
    command = ("validate", str(model("trained")), str(out), "--target", "qnn", "--windows", "1", "--text", str(text))
    done = run_cli(*command, "--json", str(report), XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1, "undecided: too few chunks"
    _check_report(json.loads(report.read_text()), done.stdout, windows=1)
    with runtime.open(out, runtime.EngineOptions(vocabulary_only=True), target="qnn") as session:
        assert ("in the emulator" in session._engine.library) == (platform.machine() == "x86_64")


def _check_report(report: Any, shown: str, windows: int) -> None:
    assert report["options"]["windows"] == windows and report["options"]["target"] == "qnn"
    drift = report["candidates"][0]["drift"]
    emulated, processor = (drift[part]["mean"] for part in ("total", "processor"))
    assert emulated["chunks"] == processor["chunks"] == 4 * windows
    assert emulated["kld"]["value"] == pytest.approx(processor["kld"]["value"], rel=0.1)
    assert emulated["kld"]["value"] != processor["kld"]["value"], "two engines ran"
    assert emulated["top1"]["value"] == pytest.approx(processor["top1"]["value"], abs=0.03)
    assert "drift of the same integers on the processor" in shown and "KLD on qnn / on the processor: " in shown
    assert ", wanted ≤ 0.1: fewer than 30 chunks" in shown, "the limits are those of 4 bits"


SHARED = """
import sys
from pathlib import Path
import onnxruntime as ort
from sampan import qnn
folder, stage = Path(sys.argv[1]), sys.argv[2]
kept = []
for n, name in enumerate(("part-1.128", "part-1.1")):
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_session_config_entry("ep.share_ep_contexts", "1")
    if stage == "compile":
        settings.add_session_config_entry("ep.stop_share_ep_contexts", str(n))
        settings.add_session_config_entry("ep.context_enable", "1")
        settings.add_session_config_entry("ep.context_file_path", str(folder / f"{name}.shared.onnx"))
        settings.add_session_config_entry("ep.context_embed_mode", "0")
    more = {"enable_htp_weight_sharing": "1"} if stage == "compile" else {}
    settings.add_provider_for_devices(qnn._devices(ort), qnn.options("75") | more)
    graph = folder / (f"{name}.onnx" if stage == "compile" else f"{name}.shared.onnx")
    kept.append(ort.InferenceSession(str(graph), settings))
print("done", flush=True)
import os; os._exit(0)
"""


@needs_qnn
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a device may load them")
def test_contexts_that_share_weights_are_not_loaded_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why each graph has a binary of its own: shared ones are compiled, and the emulator cannot open them."""
    monkeypatch.setattr(compiled, "compiled", lambda *a: ({}, []))
    out = to_npu(model("trained"), tmp_path / "out").out
    made, again = (
        subprocess.run([sys.executable, "-c", SHARED, str(out), stage], capture_output=True, text=True, timeout=280)
        for stage in ("compile", "load")
    )
    assert made.stdout.endswith("done\n"), made.stderr
    names = {qnn.contexts(out / f"part-1.{n}.shared.onnx")[0] for n in TOKENS}
    assert len(names) == 1, "one binary for both"
    assert "done" not in again.stdout, "they load: a folder could be half as large"


BAD: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a missing extra": (
        "from sampan import qnn; qnn.installed = lambda name: None", ("qnn",),
        "onnxruntime-qnn: it is not installed; pip install",
    ),
    "another SDK": (
        "from sampan import qnn; qnn.installed = lambda name: '1.24.0'", ("qnn-v75",),
        "onnxruntime-qnn: expected version 2.7 or newer, before 3, found 1.24.0",
    ),
    "an unknown version of HTP": ("", ("qnn-v68",), "--target: expected qnn, or one of qnn-v73"),
    "a context": (KNOWN, ("qnn", "--context", "5000"), "--context: expected 128 to the model's own 1024, found 5000"),
    "a layer that no part holds": (KNOWN, ("qnn", "--split-size", "10K"), "--split-size: expected at least"),
    "a part that no binary holds": (KNOWN, ("qnn", "--split-size", "3G"), "--split-size: expected at most 2 GB"),
    "another format": (KNOWN, ("qnn", "--to", "gguf"), "--target: expected none with --to gguf"),
}  # fmt: skip


@pytest.mark.everyday("an unknown version of HTP", "a context", "a layer that no part holds", "another SDK")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, model: Model, tmp_path: Path) -> None:
    patch, options, message = BAD[case]
    done = command(patch, "--to", "onnx", "--target", *options, source=model("trained"), out=tmp_path / "out")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_5", "deepseek_v3", "kimi_linear"])
def test_a_family_that_the_target_cannot_hold(name: str, model: Model, tmp_path: Path) -> None:
    done = command(KNOWN, "--to", "onnx", "--target", "qnn", source=model(name), out=tmp_path / "out")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert "--target: expected blocks of the kinds dense, gqa, mla, found one of " in done.stderr
    assert not list(tmp_path.iterdir())


def test_statistics_of_another_checkpoint(model: Model, gguf: Gguf, tmp_path: Path) -> None:
    """Of its SHA-256; nothing is compiled then."""
    stats = tmp_path / "stats.safetensors"
    write_stats(stats, stats_files.made_up(gguf("trained", "f32")), {"source_sha256": "0" * 64}, 512)
    options = ("--to", "onnx", "--quant", "int4", "--target", "qnn-v75", "--context", "256", "--stats", str(stats))
    done = command(KNOWN, *options, source=model("trained"), out=tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert "they are another checkpoint's; calibrate again" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@needs_qnn
@pytest.mark.slow
def test_a_part_over_its_limit_is_refused(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "FIXED", 0)
    monkeypatch.setattr(compiled, "SPARE", -0.9999)
    with pytest.raises(InputError, match=r"part-1\.128\.v75\.onnx: expected a part of about .* smaller --split-size"):
        to_npu(model("trained"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
