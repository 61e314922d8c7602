"""The demo app's core on a JVM: its own JUnit tests, and its reading of models against gguf-py and llama.cpp."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from android_java import CORE, Java, compiled
from gguf import GGUFReader

from sampan.runtime.memory import need

ROOT = Path(__file__).parents[1]
CASES = sorted((CORE / "test").rglob("*Test.java"))


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Java:
    return compiled(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def report(java: Java) -> Callable[..., list[dict[str, Any]]]:
    """`report(*files)` → what the app knows of each model before it loads it."""

    def read(*files: Path) -> list[dict[str, Any]]:
        run = java("org.sampan.core.Report", *files)
        assert run.returncode == 0, run.stderr
        return [json.loads(line) for line in run.stdout.splitlines()]

    return read


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_junit(case: Path, java: Java) -> None:
    run = java("org.junit.runner.JUnitCore", f"org.sampan.core.{case.stem}")
    passed = re.search(r"^OK \((\d+) tests?\)$", run.stdout, re.MULTILINE)
    assert run.returncode == 0 and passed, run.stdout + run.stderr
    assert int(passed[1]) == len(re.findall(r"^ +@Test$", case.read_text(), re.MULTILINE)) > 0


def test_the_core_knows_nothing_of_android() -> None:
    for path in CORE.rglob("*.java"):
        for module in re.findall(r"^import (?:static )?([\w.]+)", path.read_text(), re.MULTILINE):
            allowed = re.match(r"(java\.(io|lang|nio|text|util)|org\.(junit|sampan\.core))\.", module)
            assert allowed, f"{path.name}: {module}"


MEASURE = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=int(sys.argv[2]), verbose=True)
print(json.dumps(llama_cpp.llama_model_size(model.model)))
"""


def measured(path: Path, context: int) -> tuple[int, float, float]:
    """Bytes that llama.cpp says: all tensors of the file, the cache with recurrent states, all that it allocates."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, path, str(context)], capture_output=True, text=True, check=True, timeout=300
    )

    def total(what: str) -> float:
        return sum(float(size) * 2**20 for size in re.findall(rf"{what} buffer size = +([\d.]+) MiB", run.stderr))

    cache = total("KV") + total("RS")
    return json.loads(run.stdout), cache, total(" model") + cache + total("compute") + total("output")


# dense, tied and not; experts; MLA; recurrent layers of two kinds; a head that predicts further tokens
MODELS = (
    "trained", "trained-kimi", "qwen3_moe", "glm4-odd-widths", "deepseek_v3", "qwen3_5", "qwen3_5-mtp", "kimi_linear",
    "qwen3_5_moe",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_as_llama_cpp_finds_them(
    name: str, gguf: Callable[[str, str], Path], report: Callable[..., list[dict[str, Any]]]
) -> None:
    path = gguf(name, "q8_0")
    [ours] = report(path)
    reader = GGUFReader(path)
    field = reader.get_field("general.architecture")
    assert field is not None and ours["architecture"] == field.contents()
    assert ours["tensors"] == sum(int(t.n_bytes) for t in reader.tensors)
    assert ours["vocabulary"] == next(int(t.shape[1]) for t in reader.tensors if t.name == "token_embd.weight")
    tensors, cache, all_of_it = measured(path, ours["context"])
    assert ours["tensors"] == tensors
    assert ours["cache"] == pytest.approx(cache, abs=2**15), "the log has two decimals"
    needed = need(path, ours["context"])
    assert (ours["cache"], ours["need"]) == (needed.cache, needed.total), "sampan push reckons the same"
    assert all_of_it <= ours["need"] <= all_of_it + needed.margin


@pytest.mark.slow
def test_hostile_headers_are_refused_by_kind(report: Callable[..., list[dict[str, Any]]]) -> None:
    files = sorted((ROOT / "tests" / "hostile" / "gguf").glob("*.gguf"))
    kinds = {path.stem: read.get("fault") for path, read in zip(files, report(*files), strict=True)}
    assert kinds.pop("wrong-magic") == "NOT_GGUF"
    assert kinds.pop("cut-short") == "TRUNCATED"
    # these hold no tensors behind the header; that a name stands twice is for the engine to refuse
    assert kinds.pop("key-twice") == kinds.pop("tensor-twice") == "TRUNCATED"
    assert set(kinds.values()) == {"UNKNOWN"}, kinds


@pytest.mark.slow
def test_a_conversion_cut_anywhere_is_told(
    gguf: Callable[[str, str], Path], tmp_path: Path, report: Callable[..., list[dict[str, Any]]]
) -> None:
    whole = gguf("trained", "q4_k_m").read_bytes()
    ends = [*range(4, 4000, 397), *range(4000, len(whole), len(whole) // 20), len(whole) - 1]
    files = [tmp_path / f"{end}.gguf" for end in ends]
    for end, path in zip(ends, files, strict=True):
        path.write_bytes(whole[:end])
    assert {read.get("fault") for read in report(*files)} == {"TRUNCATED"}


@pytest.mark.slow
def test_the_chat_drives_an_engine_that_is_given(java: Java) -> None:
    """As the tests of the real engine do."""
    engine = [sys.executable, str(ROOT / "tests" / "android_engine.py"), "normal"]
    run = java("org.sampan.core.Drive", "/m/model.gguf", "512", "one", "你好", "--", *engine)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [a["answer"] for a in answers] == ["You said: one (1)", "You said: 你好 (3)"], run.stderr
    assert {(a["reason"], a["speed"], a["memory"]) for a in answers} == {("stop", 16.0, 12345678)}
    run = java("org.sampan.core.Drive", "/m/bad.gguf", "512", "one", "--", *engine)
    assert (run.returncode, json.loads(run.stdout)["notice"]) == (1, "LOAD_FAILED")
    run = java("org.sampan.core.Drive", "/m/model.gguf", "512", "die", "--", *engine)
    assert (run.returncode, json.loads(run.stdout)["notice"]) == (1, "ENGINE_DIED")
