"""What is declared, what is missing, and what works without an engine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import tiny
from onnx_peer import to_onnx

from sampan.extras import advice, installed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {"google-re2": "re2", "pyyaml": "yaml", "llama-cpp-python": "llama_cpp", "protobuf": "google"}
ELSEWHERE = {"optimum", "rknn"}  # in an environment of its own


def modules(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", r) for r in requirements)
    names = {m[0].lower() for m in found if m}
    return {MODULES.get(n, n.replace("-", "_")) for n in names}


def test_every_import_is_declared() -> None:
    needed = (
        PROJECT["dependencies"],
        *(EXTRAS[name] for name in ("onnx", "gguf", "reference", "schema", "server", "qnn")),
    )
    declared = modules([r for requirements in needed for r in requirements])
    imported = set()
    for folder in ("core", "calibrate", "cli", "convert", "quantize", "runtime", "validate"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {a.name.split(".")[0] for a in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(str(node.module).split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"sampan"} - ELSEWHERE
    assert others == declared


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata that pyproject.toml makes."""
    lines = [*PROJECT["dependencies"], *(f'{r}; extra == "{x}"' for x, rs in EXTRAS.items() for r in rs)]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)


@pytest.mark.usefixtures("declared")
def test_what_to_install() -> None:
    for module, extra in {
        "onnxruntime": "onnx", "onnx": "onnx", "llama_cpp": "gguf", "torch": "reference", "transformers": "reference",
        "llguidance": "schema", "llama_cpp.llama_cpp": "gguf",
    }.items():  # fmt: skip
        assert advice(module) == f'pip install "sampan[{extra}]"'
    assert advice("jinja2") == "pip install --force-reinstall sampan"


def test_versions_of_what_is_there_and_what_is_not() -> None:
    assert installed("numpy") == metadata.version("numpy") and installed("no-such-package-of-ours") is None


def without(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process where no engine can be imported."""
    hidden = ("llama_cpp", "onnxruntime", "onnx", "torch", "transformers")
    start = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); "
    return subprocess.run(
        [sys.executable, "-c", start + code, *arguments], capture_output=True, text=True, timeout=300, env=os.environ,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_onnx_needs_no_llama(quant: str, tmp_path: Path) -> None:
    """From bfloat16 weights, in the types that are ONNX's own."""
    code = "import sys; sys.modules['llama_cpp'] = None; " + MAIN
    command = ["convert", str(tiny.FIXTURE), "--to", "onnx", "--quant", quant, "-o", str(tmp_path / "o")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = to_onnx(tiny.FIXTURE, tmp_path / "with", quant).artifact
    assert (tmp_path / "o" / "model.onnx.data").read_bytes() == (expected / "model.onnx.data").read_bytes()


MAIN = "from sampan.cli import main; main()"


def test_an_engine_that_is_missing(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    cases = [
        (["run", str(gguf("trained", "q8_0")), "Hi"], "llama_cpp: cannot be imported ("),
        (
            ["run", str(to_onnx(tiny.FIXTURE, tmp_path / "onnx", "int8").artifact), "Hi"],
            "onnxruntime: cannot be imported (",
        ),
        (
            ["convert", str(tiny.FIXTURE), "--to", "onnx", "-o", str(tmp_path / "o")],
            "onnx is not installed; pip install",
        ),
        (["convert", str(tiny.FIXTURE), "-o", str(tmp_path / "o.gguf")], "llama_cpp: expected libggml-base in"),
    ]
    for arguments, line in cases:
        done = without(MAIN, *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: {line}") or (line in done.stderr and "pip install" in done.stderr)


@pytest.mark.everyday("bf16")
@pytest.mark.parametrize("quant", ["bf16", "f16", "f32"])
def test_plain_numbers_need_no_engine(quant: str, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    done = without(MAIN, "convert", str(tiny.FIXTURE), "--quant", quant, "-o", str(tmp_path / "o.gguf"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.gguf").read_bytes() == gguf("trained", quant).read_bytes()
