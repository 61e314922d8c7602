"""Every reader of a stranger's files on damaged inputs: a result or a refusal, in time and in bounded memory."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import spm
import tiny
from fuzz.targets import TARGETS
from onnx_peer import to_onnx
from test_resume import kill_on_the_way
from test_sentencepiece import LLAMA, NAMES, write_json

pytestmark = pytest.mark.slow
SEED = 1
SECONDS, MEMORY = 20.0, 10**9  # of a case; of the process
CONFIGS = ("trained", "trained-kimi", "qwen2_moe", "llama", "glm4", "deepseek_v3-yarn", "qwen3_next", "kimi_linear")


def fuzz(name: str, sources: list[Path], work: Path, seed: int = SEED) -> None:
    """Run a target's cases in a child and raise what went wrong; a case says how to run it alone."""
    argv = [sys.executable, str(Path(__file__).with_name("child.py")), name, str(seed), str(TARGETS[name].cases)]
    failed, last, peak = [], -1, 0
    with subprocess.Popen([*argv, *map(str, sources), str(work)], stdout=subprocess.PIPE) as child:
        assert child.stdout
        try:
            while select.select([child.stdout], [], [], SECONDS)[0] and (line := child.stdout.readline()):
                said = json.loads(line)
                last, peak = said.get("case", last), said.get("peak", peak)
                if "failed" in said:
                    failed.append(f"case {last}: {said['failed']}")
        finally:
            child.kill()
    assert not failed, f"{len(failed)} of {last + 1}\n" + "\n".join(failed[:5])
    assert peak, f"case {last} ended the process or took more than {SECONDS:.0f} s"
    assert last + 1 == TARGETS[name].cases and peak < MEMORY, peak


@pytest.fixture
def gguf_folder(gguf: Callable[[str, str], Path], tmp_path: Path) -> Path:
    (folder := tmp_path / "gguf").mkdir()
    shutil.copy(gguf("trained", "q4_0"), folder / "x.gguf")
    return folder


@pytest.fixture
def onnx_folder(tmp_path: Path) -> Path:
    to_onnx(tiny.FIXTURE, folder := tmp_path / "onnx", "int4")
    return folder


def test_template(tmp_path: Path) -> None:
    fuzz("template", [Path(__file__).parents[1] / "templates"], tmp_path)


def test_journal(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """The unfinished output of a run that was killed."""
    kill_on_the_way(tiny.FIXTURE, tmp_path / "killed" / "x.gguf")
    shutil.copy(gguf("trained", "q8_0"), tmp_path / "killed" / "whole.gguf")
    fuzz("journal", [tmp_path / "killed"], tmp_path)


def test_config(model: Callable[[str], Path], tmp_path: Path) -> None:
    fuzz("config", [model(name) for name in CONFIGS], tmp_path)


@pytest.mark.parametrize("name", ["index", "header", "tokenizer"])
def test_checkpoint(name: str, tmp_path: Path) -> None:
    fuzz(name, [tiny.FIXTURE], tmp_path)


def test_tiktoken(tmp_path: Path) -> None:
    fuzz("tiktoken", [tiny.KIMI], tmp_path)


@pytest.mark.parametrize("own", [(), ("<own>", "[x]")])
def test_pieces(own: tuple[str, ...], model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("llama-linear"), tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(spm.model(2048, own=own))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}')
    fuzz("pieces", [folder], tmp_path)


@pytest.mark.parametrize("steps", ["prepend", "first"])
def test_tokenizer_with_byte_fallback(steps: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("llama-linear"), tmp_path / "model"))
    write_json(folder, LLAMA if steps == "prepend" else NAMES, steps)
    fuzz("tokenizer", [folder], tmp_path)


def test_gguf(gguf_folder: Path, tmp_path: Path) -> None:
    fuzz("gguf", [gguf_folder], tmp_path)


def test_onnx(onnx_folder: Path, tmp_path: Path) -> None:
    fuzz("onnx", [onnx_folder], tmp_path)
