"""The demo app's core on a JVM: its own JUnit tests, and its reading of models against gguf-py and llama.cpp."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

ROOT = Path(__file__).parents[1]
CORE = ROOT / "android-demo" / "core" / "src"
CASES = sorted((CORE / "test").rglob("*Test.java"))
JARS = [Path("/usr/share/java") / name for name in ("junit4.jar", "hamcrest.jar")]
NEEDED = "the tests of android-demo need a JDK and JUnit 4: apt-get install default-jdk-headless junit4"


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`java(main class, *arguments)` runs one of the core's classes, compiled as for the app: no warning, Java 8."""
    if not (shutil.which("javac") and all(jar.exists() for jar in JARS)):
        assert "CI" not in os.environ, NEEDED
        pytest.skip(NEEDED)
    out = tmp_path_factory.mktemp("classes")
    path = ":".join(map(str, [out, *JARS]))
    sources = sorted(CORE.rglob("*.java"))
    subprocess.run(
        ["javac", "--release", "8", "-encoding", "UTF-8", "-Xlint:all,-options,-serial", "-Werror", "-cp", path,
         "-d", out, *sources],
        check=True, timeout=300,
    )  # fmt: skip

    def run(main: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        engine = ROOT / "tests" / "android_engine.py"
        options = [f"-Dsampan.python={sys.executable}", f"-Dsampan.engine={engine}", "-Dfile.encoding=UTF-8"]
        return subprocess.run(
            ["java", "-Xmx256m", *options, "-cp", path, main, *arguments],
            capture_output=True, text=True, encoding="utf-8", timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def report(java: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[dict[str, Any]]]:
    """`report(*files)` → what the app knows of each model before it loads it."""

    def read(*files: Path) -> list[dict[str, Any]]:
        run = java("org.sampan.core.Report", *files)
        assert run.returncode == 0, run.stderr
        return [json.loads(line) for line in run.stdout.splitlines()]

    return read


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_junit(case: Path, java: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    run = java("org.junit.runner.JUnitCore", f"org.sampan.core.{case.stem}")
    passed = re.search(r"^OK \((\d+) tests?\)$", run.stdout, re.MULTILINE)
    assert run.returncode == 0 and passed, run.stdout + run.stderr
    assert int(passed[1]) == len(re.findall(r"^ +@Test$", case.read_text(), re.MULTILINE)) > 0


def test_the_core_knows_nothing_of_android() -> None:
    for path in CORE.rglob("*.java"):
        for module in re.findall(r"^import (?:static )?([\w.]+)", path.read_text(), re.MULTILINE):
            assert re.match(r"(java\.(io|lang|nio|util)|org\.(junit|sampan\.core))\.", module), f"{path.name}: {module}"


MEASURE = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=int(sys.argv[2]), verbose=True)
print(json.dumps(llama_cpp.llama_model_size(model.model)))
"""


def measured(path: Path, context: int) -> tuple[int, float, float]:
    """Bytes that llama.cpp says it holds: tensors, cache with the state of recurrent layers, and buffers."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, path, str(context)], capture_output=True, text=True, check=True, timeout=300
    )

    def total(what: str) -> float:
        return sum(float(size) * 2**20 for size in re.findall(rf"{what} buffer size = +([\d.]+) MiB", run.stderr))

    return json.loads(run.stdout), total("KV") + total("RS"), total("compute") + total("output")


# dense, tied and not; experts; MLA; recurrent layers
MODELS = ("trained", "trained-kimi", "qwen3_moe", "glm4-odd-widths", "deepseek_v3", "qwen3_5", "qwen3_5-mtp")


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
    tensors, cache, buffers = measured(path, ours["context"])
    assert ours["tensors"] == tensors
    assert cache <= ours["cache"] * 1.01 + 2**16, "an estimate from above; the log has two decimals"
    assert ours["cache"] <= cache * 1.2 + 2**16, "and not far above"
    assert tensors + cache + buffers <= ours["need"]


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
def test_the_chat_drives_an_engine_that_is_given(java: Callable[..., subprocess.CompletedProcess[str]]) -> None:
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
