"""Processes that are started while the working directory is a stranger's: nothing in it runs."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from test_house import ALLOWED, ROOT

from sampan import child
from sampan.convert import environments
from sampan.convert.exporters import optimum
from sampan.errors import InputError
from sampan.runtime.chat import _renderer as chat
from sampan.runtime.chat import render
from sampan.validate import isolated
from sampan.validate.chat import _peer as peer
from sampan.validate.chat import reference_texts

MODULES = (
    "json", "numpy", "venv", "ensurepip", "pip", "sampan", "llama_cpp", "onnxruntime", "onnx", "tokenizers", "torch",
    "transformers", "optimum", "sitecustomize", "usercustomize", "encodings",
)  # fmt: skip


@pytest.fixture(params=["", ":", "relative"])
def trap(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with modules that leave a file when they run; PYTHONPATH names it in every relative way."""
    folder = tmp_path / "stranger" / "relative"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        for name in MODULES:
            (place / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    monkeypatch.chdir(folder.parent)
    if request.param:
        monkeypatch.setenv("PYTHONPATH", request.param)
    yield folder.parent
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_code_of_ours(trap: Path) -> None:
    """Also a Python that it starts in turn."""
    code = """
import subprocess, sys, json, numpy, sampan.errors
print(sys.argv[1], subprocess.check_output([sys.executable, "-c", "import json; print(json.dumps(1))"], text=True))
"""
    with child.start(code, "said") as process:
        assert process.stdout is not None
        assert process.stdout.read() == "said 1\n\n"
    assert process.returncode == 0


def test_validate(trap: Path, gguf: Callable[[str, str], Path]) -> None:
    task = {"task": "tokenize", "path": str(gguf("trained", "q8_0")), "texts": [["Hello", False, False]]}
    assert [list(m) for m in isolated.messages(task)] == [["stage", "of"], ["ids"]]


def test_conversations(trap: Path) -> None:
    """Both processes that render them."""
    chat.close()
    peer.close()
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "x"}]) == "x"
    asked = [{"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True}]
    texts, by = reference_texts(tiny.FIXTURE, asked)
    assert by == "by transformers" and "<|im_start|>user\nx<|im_end|>" in str(texts[0])


def test_an_absolute_entry_of_the_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text("x = 7")
    monkeypatch.setenv("PYTHONPATH", f":{tmp_path}:.")
    with child.start("import own; print(own.x)") as process:
        assert process.stdout is not None and process.stdout.read() == "7\n"


def test_the_exporter(trap: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    run = optimum._Run(place, tmp_path, "config.json")
    with pytest.raises(InputError, match=r"its export of this checkpoint failed: .*No module named '(onnx|optimum)"):
        run("export", source=tiny.FIXTURE)


def test_the_exporters_environment(trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    real, bare = environments.call, {"venv": ["--without-pip"], "pip": []}
    monkeypatch.setattr(environments, "call", lambda w, python, *module: real(w, python, *module, *bare[module[0]]))
    with pytest.raises(InputError, match=r"--make-exporter: `-m pip .*` failed with exit code 1"):
        environments.make(optimum.ENVIRONMENT, tmp_path / "cache" / "exporter")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_environment_that_somebody_else_made_stays(tmp_path: Path) -> None:
    (tmp_path / "exporter").mkdir()
    (tmp_path / "exporter" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="exporter: --make-exporter would put its environment there, and finds a fol"):
        environments.make(optimum.ENVIRONMENT, tmp_path / "exporter")
    assert [p.name for p in tmp_path.rglob("*")] == ["exporter", "thesis.txt"]


def test_an_environment_of_other_versions_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "exporter"
    for name in environments.MARKS:
        place.mkdir(exist_ok=True)
        (place / name).write_text("torch==1.0")

    def call(wanted: object, python: str, *module: str) -> None:
        if module[0] == "venv":
            Path(module[1]).mkdir()

    monkeypatch.setattr(environments, "call", call)
    environments.make(optimum.ENVIRONMENT, place)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["exporter", "exporter/pins"]
    shutil.rmtree(place)


HARMLESS = ("PIPE", "DEVNULL", "Popen", "TimeoutExpired")  # of subprocess: names that start nothing
STARTS = {"subprocess", "multiprocessing", "pty", "concurrent.futures.process"}
CALLS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}


@pytest.mark.parametrize("folder", ALLOWED)
def test_one_place_starts_processes(folder: str) -> None:
    """subprocess may be imported elsewhere for its constants alone."""
    for path in (ROOT / folder).rglob("*.py"):
        if path == ROOT / "core" / "child.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom):
                assert node.module not in STARTS, where
            elif isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & (STARTS - {"subprocess"}), where
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "subprocess" or node.attr in ("PIPE", "DEVNULL", "Popen", "TimeoutExpired"), (
                    where
                )
                assert node.value.id != "os" or not node.attr.startswith(("exec", "spawn", *CALLS)), where
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ("Popen", "ProcessPoolExecutor"), where
