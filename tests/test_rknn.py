"""Rockchip's NPUs: the graphs against transformers, the runtime against stand-ins for Rockchip's API, and (slow, where
its environment is) Rockchip's compiler and simulator.

The stand-ins share nothing with the code that they test: one evaluates the float graph in ONNX Runtime, the other asks
the simulator.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import stats_files
from conftest import run_cli
from reference import assert_close, reference
from rknn_board import StandIn, install
from test_logits import tokens
from test_npu import CONTEXT, Floats, Model, float_graphs
from test_qnn import snr

from sampan import qnn, rknn, runtime
from sampan.checkpoint import open_folder
from sampan.convert import environments
from sampan.convert.conversion import Conversion, convert, prepare
from sampan.convert.formats.onnx import rockchip
from sampan.convert.formats.onnx.forms.plain import Plain
from sampan.errors import InputError
from sampan.static import TOKENS

Noise = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
QUESTION = "Which city is the capital of Mongolia? Please work out 2 + 38."


def to_rknn(source: Path, out: Path, quant: str = "fp16", **options: Any) -> Conversion:
    settings = {"target": "rk3588", "context": CONTEXT, "jobs": 2} | options
    made = prepare(open_folder(source), out, "onnx", quant, **settings)
    convert(made)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Rockchip's compiler left out, and what it was asked; its simulator gives what ONNX Runtime gave, and noise."""
    jobs: list[dict[str, Any]] = []

    def ask(place: Path, inside: Path, work: Path, *words: object, **job: Any) -> dict[str, Any]:
        jobs.append(job)
        job["out"].write_bytes(b"compiled")
        for n, file in enumerate(sorted((work / job["check"]).glob("out-*"), key=lambda f: int(f.stem[4:]))):
            np.save(job["found"] / f"{n}.npy", noise(np.load(file)))
        return {}

    monkeypatch.setattr(rockchip, "ask", ask)
    monkeypatch.setattr(rockchip, "find", lambda wanted, folder: folder)
    return jobs


def noise(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values + 1e-4 * np.abs(values).max() * np.random.default_rng(0).standard_normal(values.shape)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """A machine with rknn-toolkit-lite2."""
    lite = type("RKNNLite", (StandIn,), {"released": []})
    yield install(monkeypatch, lite)


def answer(session: Any, count: int = 24) -> tuple[Any, list[int]]:
    """Logits of a text by pieces and one by one, and greedy tokens after it."""
    engine, ids = session._engine, session.tokenize(QUESTION)
    logits = [session.logits(ids)]
    engine.keep(0)
    logits += [engine.evaluate([i], 1).copy() for i in ids[:4]]
    engine.keep(0)
    last, found = engine.evaluate(ids, 1)[-1], []
    for _ in range(count):
        found.append(int(last.argmax()))
        last = engine.evaluate(found[-1:], 1)[-1].copy()
    return np.concatenate(logits), found


@pytest.mark.parametrize("name", ["trained", "glm4"])
def test_plain_graphs_equal_transformers(name: str, model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    """Norms of heads and a rotation of half a head among them; in float32, over the cache."""
    monkeypatch.setattr(qnn, "check", lambda: "none")
    run = Floats(tmp_path / "out", float_graphs(model(name), tmp_path / "out", Plain))
    ids = tokens()[:150]
    found = [run(ids[:100], 128), *(run([i], 1) for i in ids[100:110]), run(ids[110:], 128)]
    assert_close(np.concatenate(found), reference(model(name), ids))


@pytest.mark.slow
def test_what_is_asked_of_the_compiler_and_what_is_written(
    asked: list[dict[str, Any]], model: Model, tmp_path: Path
) -> None:
    made = to_rknn(model("trained"), tmp_path / "out", split=3_000_000)
    parts = len({job["graph"].name.split(".")[0] for job in asked})
    assert parts == 4 and len(asked) == 2 * parts
    assert {(job["chip"], job["type"]) for job in asked} == {("rk3588", None)}
    for n in TOKENS:
        graph = onnx.load(made.out / f"part-1.{n}.onnx", load_external_data=False)
        assert {o.domain: o.version for o in graph.opset_import}[""] == 19
        assert all(len(v.type.tensor_type.shape.dim) <= 3 for v in graph.graph.input)
        onnx.checker.check_model(made.out / f"part-1.{n}.onnx", full_check=True)
    for f in made.plan.files:
        assert f.path.stat().st_size == f.size, "every byte is in the plan"
    manifest = json.loads((made.out / "manifest.json").read_text())
    assert set(manifest["npu"]["compiled"]) == {f"part-{p}.{n}.rk3588.rknn" for p in range(1, 5) for n in TOKENS}
    assert all(60 < v < 120 for values in manifest["npu"]["decibels"].values() for v in values.values())
    assert set(manifest["npu"]["compiled"]) < set(manifest["files"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    shown = run_cli("inspect", str(made.out))
    assert shown.returncode == 0 and re.search(r"^activations +fp16$", shown.stdout, re.MULTILINE)
    as_json = json.loads(run_cli("inspect", str(made.out), "--json").stdout)
    assert as_json["part 4"]["rk3588"] == 2 * len("compiled") and as_json["target"] == "rk3588"


@pytest.mark.slow
def test_calls_to_measure_on(asked: list[dict[str, Any]], model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    """int8: the last piece and 16 tokens of each of four texts, the cache filled by the pieces before."""
    real, seen = rockchip.ask, {}

    def look(place: Path, inside: Path, work: Path, *words: object, **job: Any) -> dict[str, Any]:
        names = [i.name for i in onnx.load(job["graph"], load_external_data=False).graph.input]
        at = names.index("past_key.0")
        seen[job["graph"].name] = [np.load(work / s / f"{at}.npy") for s in job["samples"]]
        assert len(names) == job["inputs"] == len([f for f in (work / job["check"]).iterdir() if f.stem.isdigit()])
        return real(place, inside, work, *words, **job)

    monkeypatch.setattr(rockchip, "ask", look)
    to_rknn(model("trained"), tmp_path / "out", "int8")
    assert [len(v) for v in seen.values()] == [4, 64]
    piece, single = (v[0] for v in seen.values())
    assert np.abs(piece[..., :128]).min() > 0 and not piece[..., 128:].any()
    assert np.array_equal(single[..., :128], piece[..., :128]) and np.abs(single[..., 128:]).min() > 0
    done = run_cli("validate", str(model("trained")), str(tmp_path / "out"))
    assert done.returncode == 2 and "numbers that the processor has too, found w8a8, which only rk35" in done.stderr


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda v: v + 0.1 * v.std() * np.random.default_rng(0).standard_normal(v.shape),
         r"part-1\.128\.rk3588\.rknn: present_key\.0: expected at least 45 dB .*, found (19|20)\.\d dB"),
        (lambda v: v * np.nan, "present_key.0: expected .*, found nan dB"),
        (lambda v: v[..., :-1], "present_key.0: expected .*, found nan dB"),
    ],
)  # fmt: skip
def test_what_the_simulator_computes_otherwise_gets_no_name(
    spoilt: Noise, message: str, asked: list[dict[str, Any]], model: Model, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "noise", spoilt)
    with pytest.raises(InputError, match=message):
        to_rknn(model("trained"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mask_that_does_not_hide_is_refused(
    asked: list[dict[str, Any]], model: Model, tmp_path: Path, monkeypatch: Any
) -> None:
    """8 bits want a narrow mask, which is compared with a wide one on every text."""
    monkeypatch.setitem(rockchip.KINDS, "w8a8", replace(rockchip.KINDS["w8a8"], far=-3.0))
    with pytest.raises(InputError, match=r"--quant: expected scores that a mask of -3 hides.*, found .* try fp16"):
        to_rknn(model("trained"), tmp_path / "out", "int8")
    assert not asked and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_session_on_a_board(
    asked: list[dict[str, Any]], board: type[StandIn], model: Model, tmp_path: Path
) -> None:
    """Greedy tokens and logits as on the processor, in parts; the cache is cut, kept and restored."""
    out = to_rknn(model("trained"), tmp_path / "out", split=3_000_000).out
    with runtime.open(out) as on_cpu, runtime.open(out, target="rk3588") as on_npu:
        exact, found = answer(on_cpu), answer(on_npu)
        assert exact[1] == found[1]
        assert 55 < snr(exact[0], found[0]) < 90, "numbers of the stand-in went through float16"
        engine, ids = on_npu._engine, tokens()[:140]
        on_npu.logits(ids)
        state = np.empty(engine.state_bytes(), np.uint8)
        engine.copy_state(state)
        last = engine.evaluate([5], 1)[0].copy()
        engine.keep(0)
        engine.evaluate(ids[::-1][:100], 0)
        engine.restore(len(ids), state)
        assert np.array_equal(engine.evaluate([5], 1)[0], last)
        assert "rknn-toolkit-lite2 2.5.0" in engine.library and engine.kv == "f16"
    assert len(board.released) == 8


def test_the_float_graphs_on_the_processor(asked: list[dict[str, Any]], model: Model, tmp_path: Path) -> None:
    """Weights and cache of float16: near transformers' logits, but not in their last digits."""
    ids = tokens()[:150]
    with runtime.open(to_rknn(model("trained"), tmp_path / "out").out) as session:
        assert snr(reference(model("trained"), ids).logits, session.logits(ids)) > 60


def test_a_board_that_refuses(
    asked: list[dict[str, Any]], board: type[StandIn], model: Model, tmp_path: Path, monkeypatch: Any
) -> None:
    out = to_rknn(model("trained"), tmp_path / "out").out

    def says(message: str, target: str = "rk3588") -> None:
        with pytest.raises(InputError, match=message) as error:
            runtime.open(out, target=target)
        assert "\n" not in str(error.value)

    for answers, message in (((-1, 0), "toolkit-lite2 cannot load it"), ((0, -1), "cannot start it on this machine's")):
        monkeypatch.setattr(board, "answers", answers)
        says(rf"part-1\.128\.rk3588\.rknn: .*{message}")
    monkeypatch.setattr(board, "answers", (0, 0))
    says("expected graphs for rk3576, found graphs for rk3588", "rk3576")
    with runtime.open(out, target="rk3588") as session:
        monkeypatch.setattr(board, "nothing", True)
        with pytest.raises(InputError, match=r"rknn: expected outputs .*, found None"):
            session.logits([1, 2, 3])
    (out / "part-1.1.rk3588.rknn").unlink()
    says(r"part-1\.1\.rk3588\.rknn: rknn-toolkit-lite2 cannot load it")
    monkeypatch.setattr(rknn, "installed", lambda name: None)
    says(r"rknn-toolkit-lite2: it is not installed; on the board, an aarch64 Linux: pip install .*rknn")
    layout = json.loads((out / "static.json").read_text())
    (out / "static.json").write_text(json.dumps(layout | {"type": "w2a2"}))
    says("type: expected one that rk3588 has, found w2a2")
    (out / "static.json").write_text(json.dumps(layout | {"far": 5.0}))
    says("far: expected -65504 to 0, found 5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": "int4"}, "--quant: expected one of f16, w8a8 with --target rk3588, found w4a16"),
        ({"quant": "q4_0", "target": "rk3576"}, "--quant: expected one of f16, w8a8, w4a16 with .*, found q4_0"),
        ({"accuracy": 4}, "--accuracy-level: expected none with --target rk3588"),
        ({"split": 10**9}, "--split-size: expected at most 900 MB"),
        ({"context": 64}, "--context: expected 128 to the model's own 1024, found 64"),
        ({"target": "rk3568"}, "--target: expected qnn, .*found 'rk3568'"),
    ],
)
def test_what_a_chip_cannot_hold_is_refused(
    options: dict[str, Any], message: str, asked: list[dict[str, Any]], model: Model, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        to_rknn(model("trained"), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_head_that_is_larger_than_a_part_is_one_of_its_own(
    asked: list[dict[str, Any]], model: Model, tmp_path: Path, monkeypatch: Any
) -> None:
    """As long as the toolkit holds it: the usual size is for those that it makes no difference to."""

    def parts(most: int) -> int:
        monkeypatch.setattr(rockchip, "MOST", most)
        made = prepare(open_folder(model("trained")), tmp_path / "out", "onnx", "fp16", target="rk3588")
        return sum(f.path.name.startswith("part-") and f.path.suffix == ".data" for f in made.plan.files)

    monkeypatch.setattr(rockchip, "LIMIT", 900_000)
    assert parts(2_000_000) == 5, "four layers and the head"
    with pytest.raises(InputError, match=r"--target: expected layers and a head of at most 1 MB, found 1\.\d+ MB in "):
        parts(1_000_000)


def test_statistics_are_of_no_use_to_its_compiler(
    asked: list[dict[str, Any]], model: Model, gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    stats = stats_files.write(tmp_path / "stats.safetensors", stats_files.made_up(gguf("trained", "f32")))
    with pytest.raises(InputError, match="--stats: expected none with --target rk3576, whose compiler rounds"):
        to_rknn(model("trained"), tmp_path / "out", "int4", target="rk3576", stats=stats)


def test_a_missing_environment_is_explained(model: Model, tmp_path: Path) -> None:
    command = ("convert", str(model("trained")), "--to", "onnx", "--quant", "fp16", "--target", "rk3588")
    done = run_cli(*command, "-o", str(tmp_path / "out"), XDG_CACHE_HOME=str(tmp_path))
    expected = (
        f"error: {tmp_path}/sampan/rknn: expected the environment of rknn-toolkit2, found none; --make-rknn makes"
    )
    assert done.returncode == 2 and done.stderr.startswith(expected) and done.stderr.count("\n") == 1


def test_the_environment_is_made_for_rockchip_alone(model: Model, tmp_path: Path) -> None:
    command = ("convert", str(model("trained")), "--to", "onnx", "--target", "qnn", "--make-rknn")
    done = run_cli(*command, "-o", str(tmp_path / "out"), XDG_CACHE_HOME=str(tmp_path))
    expected = "error: --make-rknn: expected --target rk3588 or rk3576 beside it, found qnn\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_a_python_without_wheels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(InputError, match=r"--make-rknn: expected Python 3\.12 or older, .* found 3\.13"):
        environments.make(rockchip.ENVIRONMENT, tmp_path / "rknn")
    assert not list(tmp_path.iterdir())


def test_gguf_does_not_know_the_scheme(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        prepare(open_folder(model("trained")), tmp_path / "out.gguf", "gguf", "w8a8")


@pytest.fixture(scope="session")
def toolkit() -> Path:
    """The environment that the program uses, where somebody made it."""
    try:
        return environments.find(rockchip.ENVIRONMENT, rockchip.ENVIRONMENT.place)
    except InputError as e:
        pytest.skip(f"slow, and needs Rockchip's compiler: {e}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "chip", "least"), [("fp16", "rk3588", 55), ("int8", "rk3588", 20), ("int4", "rk3576", 15)]
)
def test_rockchips_compiler_and_simulator(
    quant: str, chip: str, least: float, toolkit: Path, model: Model, tmp_path: Path
) -> None:
    """The whole command; every output in the simulator against ONNX Runtime."""
    options = ("--quant", quant, "--target", chip, "--context", str(CONTEXT), "-o", str(tmp_path / "out"))
    done = run_cli("convert", str(model("trained")), "--to", "onnx", *options)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert min(v for values in made["npu"]["decibels"].values() for v in values.values()) >= least
    for n in TOKENS:
        assert (tmp_path / "out" / f"part-1.{n}.{chip}.rknn").read_bytes()[:4] == b"RKNN"


@pytest.mark.slow
def test_greedy_tokens_in_the_simulator_are_those_of_the_processor(
    toolkit: Path, asked: list[dict[str, Any]], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our runtime over a stand-in for the board's API that asks Rockchip's simulator: 24 tokens, both graphs."""
    processes: list[subprocess.Popen[str]] = []

    class Simulated(StandIn):
        def start(self) -> None:
            script = Path(__file__).with_name("rknn_simulator.py")
            self.calls = 0
            self.process = subprocess.Popen(
                [str(toolkit / "bin" / "python"), "-I", str(script), str(self.graph), "rk3588"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
            )  # fmt: skip
            processes.append(self.process)
            assert self.process.stdout and self.process.stdout.readline() == "ready\n"

        def run(self, inputs: list[Any]) -> list[Any]:
            folder = tmp_path / f"{self.graph.stem}-{self.calls}"
            folder.mkdir()
            self.calls += 1
            for n, values in enumerate(inputs):
                np.save(folder / f"{n}.npy", values.astype(np.float32))
            assert self.process.stdin and self.process.stdout
            print(folder, file=self.process.stdin, flush=True)
            assert self.process.stdout.readline() == "done\n"
            return [np.load(folder / f"out-{n}.npy") for n in range(len(list(folder.glob("out-*"))))]

    out = to_rknn(model("trained"), tmp_path / "out").out
    install(monkeypatch, type("RKNNLite", (Simulated,), {"released": []}))
    try:
        with runtime.open(out) as on_cpu, runtime.open(out, target="rk3588") as on_npu:
            exact, found = answer(on_cpu), answer(on_npu)
    finally:
        for process in processes:
            process.kill()
    assert len(processes) == 2
    assert snr(exact[0], found[0]) > 50
    assert exact[1] == found[1]


@pytest.mark.slow
def test_a_compiler_that_fails_says_why(toolkit: Path, model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    """Its own last error, in one line, and nothing under the final name."""
    monkeypatch.setitem(rockchip.KINDS, "f16", rockchip.Kind("w3a3", {}, 45, -50))
    with pytest.raises(
        InputError, match=r"part-1\.128\.onnx: rknn-toolkit2 failed: ValueError: .*'w3a3', expect"
    ) as error:
        to_rknn(model("trained"), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
