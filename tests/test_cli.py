"""The command line as its users meet it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from onnx_peer import to_onnx

from sampan import runtime
from sampan.cli import _out, _progress


def test_convert_then_run(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    done = run_cli("convert", str(tiny.FIXTURE), "--quant", "int4", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: q4_k_m, 2.") and "5.04 bits per weight" in done.stdout
    answer = run_cli("run", str(out), "What is the capital of France?", "--temperature", "0")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "The capital of France is Paris.\n", "")


def test_int8_is_q8_0(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    done = run_cli("convert", str(tiny.FIXTURE), "--quant", "int8", "-o", str(out), "--json")
    assert json.loads(done.stdout)["scheme"] == "q8_0"


def test_plan_tells_the_truth_and_writes_nothing(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    plan = run_cli("convert", str(tiny.FIXTURE), "--plan", "--json", "-o", str(tmp_path / "m.gguf"))
    data = json.loads(plan.stdout)
    assert sorted(tmp_path.iterdir()) == before
    made = gguf("trained", "q4_k_m")
    assert data["bytes"] == data["disk"] == made.stat().st_size
    types = json.loads(made.with_name(made.name + ".manifest.json").read_text())["tensors"]
    assert {t["name"]: t["type"] for t in data["tensors"]} == types
    text = run_cli("convert", str(tiny.FIXTURE), "--plan").stdout
    assert re.search(r"^token_embd\.weight +2048 × 256  bf16 +q6_k +430080 +6\.56$", text, re.MULTILINE)
    assert (
        f"{made.stat().st_size} bytes" in text and "row buffers" in text and "bits per weight  5.040 (q4_k_m)" in text
    )


def test_peak_memory_stays_within_the_plan(model: Callable[[str], Path], tmp_path: Path) -> None:
    """VmHWM of a whole conversion against what --plan promised."""
    plan = json.loads(run_cli("convert", str(model("qwen3_moe")), "--plan", "--json").stdout)
    code = (
        "from sampan.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # ru_maxrss counts the parent too
    )
    out = subprocess.check_output(
        [sys.executable, "-c", code, "convert", str(model("qwen3_moe")), "-o", str(tmp_path / "m.gguf")], text=True
    )
    assert 1024 * int(out.splitlines()[-1]) < plan["peak_memory"]


def test_split_output(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    done = run_cli("convert", str(tiny.FIXTURE), "--quant", "q8_0", "--split-size", "1M", "-o", str(out))
    assert done.returncode == 0, done.stderr
    parts = sorted(p for p in tmp_path.iterdir() if p.suffix == ".gguf")
    assert [p.name for p in parts] == [f"m-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    tokens = list(range(40, 90))
    with runtime.open(parts[0]) as split, runtime.open(gguf("trained", "q8_0")) as whole:
        np.testing.assert_array_equal(split.logits(tokens), whole.logits(tokens))
    manifest = json.loads((tmp_path / "m.gguf.manifest.json").read_text())
    assert manifest["files"] == {p.name: p.stat().st_size for p in parts}


def test_sharded_source_gives_the_same_file(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    import ml_dtypes  # noqa: F401 - makes bfloat16 known to numpy
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / tiny.FIXTURE.name
    folder.mkdir()
    for file in ("config.json", *tiny.TOKENIZER_FILES):
        (folder / file).write_bytes((tiny.FIXTURE / file).read_bytes())
    stored = load_file(tiny.FIXTURE / "model.safetensors")
    names = sorted(stored)
    index = {}
    for n, group in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-0000{n}-of-00002.safetensors"
        save_file({k: stored[k] for k in group}, folder / shard)
        index |= dict.fromkeys(group, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    to_gguf(folder, tmp_path / "m.gguf", "q4_k_m")
    assert (tmp_path / "m.gguf").read_bytes() == gguf("trained", "q4_k_m").read_bytes()


def test_inspect_a_checkpoint() -> None:
    shown = run_cli("inspect", str(tiny.FIXTURE))
    assert shown.returncode == 0, shown.stderr
    for text in ("qwen3", "GQA(heads=4, kv_heads=2, head_dim=128", "pre-tokenizer", "bf16", "<|im_end|>"):
        assert text in shown.stdout
    data = json.loads(run_cli("inspect", str(tiny.FIXTURE), "--json", "--tensors").stdout)
    assert data["parameters"] == sum(int(np.prod(t["shape"])) for t in data["tensors"])


def test_inspect_says_why_a_checkpoint_cannot_be_converted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    tiny.edit_json(folder / "config.json", hidden_act="gelu")
    data = json.loads(run_cli("inspect", str(folder), "--json").stdout)
    assert "hidden_act: expected silu, found gelu" in data["not convertible"]
    assert data["types"]["bf16"]["tensors"] == 46


def test_inspect_a_gguf(gguf: Callable[[str, str], Path]) -> None:
    path = gguf("trained", "q4_k_m")
    shown = run_cli("inspect", str(path), "--tensors")
    assert "general.architecture" in shown.stdout and "blk.3.ffn_down.weight" in shown.stdout
    data = json.loads(run_cli("inspect", str(path), "--json").stdout)
    assert data["general.license"] == "apache-2.0"
    assert data["types"]["q6_k"]["tensors"] == 5 and data["parameters"] == 3673344


@pytest.mark.slow
def test_inspect_an_onnx_folder(tmp_path: Path) -> None:
    folder = to_onnx(tiny.FIXTURE, tmp_path / "m", "int4").artifact
    ours = json.loads(run_cli("inspect", str(folder), "--json", "--tensors").stdout)
    assert (ours["scheme"], ours["family"], ours["context"]) == ("int4", "qwen3", 1024)
    assert ours["opset"] == {"ai.onnx": 23, "com.microsoft": 1}
    assert ours["inputs"] == {"input_ids": "int64 [1, sequence]", "attention_mask": "int64 [1, total]"}
    assert ours["cache"] == "8 of float [1, 2, past, 128]"
    assert ours["types"]["u4_32"]["tensors"] == 29 and len(ours["tensors"]) == 46
    assert ours["tokenizer"] == "BPE, 2033 tokens" and ours["chat template"] is True
    for file in ("manifest.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    foreign = json.loads(run_cli("inspect", str(folder), "--json").stdout)
    assert foreign["types"]["4 bits, block 32"]["values"] == ours["types"]["u4_32"]["values"]
    assert foreign["chat template"] is False and "tokenizer" not in foreign
    assert foreign["bits per weight"] == pytest.approx(ours["bits per weight"], abs=0.001)


def test_a_gguf_written_by_another_program(tmp_path: Path) -> None:
    """Types, alignment and keys that we never write."""
    import gguf as package

    path = tmp_path / "other.gguf"
    writer = package.GGUFWriter(path, "mamba")
    writer.add_custom_alignment(64)
    writer.add_float64("other.double", 0.5)
    writer.add_array("other.flags", [True, False])
    writer.add_tensor("x", np.arange(6, dtype=np.int32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = json.loads(run_cli("inspect", str(path), "--json", "--tensors").stdout)
    assert data["other.double"] == 0.5 and data["other.flags"] == [True, False]
    assert data["tensors"] == [{"name": "x", "shape": [2, 3], "type": "i32", "bytes": 24}]


def test_progress_is_plain_without_a_terminal(tmp_path: Path) -> None:
    code = "from sampan.cli import _progress, main; _progress.PLAIN_SECONDS = 0; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", str(tiny.FIXTURE), "-o", str(tmp_path / "m.gguf")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("converting: 100 %, 7.35 MB of 7.35 MB, ")
    assert "\x1b" not in done.stderr + done.stdout


def test_slow_progress_says_how_long_one_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_progress, "PLAIN_SECONDS", 0)
    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=iter([0.0, 20.0, 30.0]).__next__))
    with _progress.Progress(4, "m", "run") as bar:
        for n in (0, 1, 1):  # of nothing no speed can be told
            bar(n)
    assert capsys.readouterr().err == (
        "m: 25 %, 1 run of 4 runs, 20.0 s a run, 60 s left\nm: 50 %, 2 runs of 4 runs, 15.0 s a run, 30 s left\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("convert", "no-such-folder", "-o", "x.gguf"), "no-such-folder: expected a checkpoint folder or a hub id"),
        (("convert", str(tiny.FIXTURE)), "--output: expected what to write, found none; add -o model.gguf"),
        (
            ("convert", str(tiny.FIXTURE), "--revision", "main", "-o", "x.gguf"),
            "--revision: expected a hub id",
        ),
        (("convert",), "Missing argument 'SOURCE'"),
        (("run", "nothing.gguf", "x"), "nothing.gguf: expected an artifact, found no such file"),
        (
            ("run", str(tiny.FIXTURE / "README.md"), "x"),
            "README.md: expected a GGUF file or an ONNX folder, found something else",
        ),
        (
            ("inspect", str(tiny.FIXTURE / "README.md")),
            "expected a GGUF file, found the first bytes b'---\\n'",
        ),
        (("frobnicate",), "No such command 'frobnicate'"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], text: str) -> None:
    result = run_cli(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert text in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_bug_of_ours_is_not_blamed_on_the_user() -> None:
    code = (
        "import sampan.hub\ndef broken(*a, **k): raise ZeroDivisionError('oops')\nsampan.hub.open_source = broken\n"
        "from sampan.cli import main; main()"
    )
    run = [sys.executable, "-c", code]
    plain = subprocess.run([*run, "convert", "a/b", "--plan"], capture_output=True, text=True)
    assert plain.returncode == 3
    assert plain.stderr.startswith("error: internal error: ZeroDivisionError: oops; run with `sampan --debug")
    debug = subprocess.run([*run, "--debug", "convert", "a/b", "--plan"], capture_output=True, text=True)
    assert debug.returncode == 3 and "Traceback" in debug.stderr


def test_a_full_disk_is_no_bug_of_ours() -> None:
    """Wherever a file lies whose name the system does not tell, such as validate's own temporary ones."""
    code = (
        "import sampan.hub\ndef full(*a, **k): raise OSError(28, 'No space left on device')\n"
        "sampan.hub.open_source = full\nfrom sampan.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code, "convert", "a/b", "--plan"], capture_output=True, text=True)
    line = (
        r"error: the output's folder, or that of temporary files, \S+: No space left on device: make room and run again"
    )
    assert run.returncode == 2 and re.fullmatch(line + "\n", run.stderr)


def test_a_file_on_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match="/dev/full"):
        _out.write(Path("/dev/full"), "x")


def test_a_truncated_gguf_is_refused_by_run(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf("trained", "q4_k_m").read_bytes()[:-100_000])
    result = run_cli("run", str(cut), "hello")
    assert result.returncode == 2
    assert "cut.gguf: llama.cpp cannot load it:" in result.stderr and "not within the file bounds" in result.stderr


def test_conversion_is_deterministic(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    to_gguf(tiny.FIXTURE, tmp_path / "again.gguf", "q4_k_m")
    first, second = (
        hashlib.sha256(p.read_bytes()).hexdigest() for p in (gguf("trained", "q4_k_m"), tmp_path / "again.gguf")
    )
    assert first == second
