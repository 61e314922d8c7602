"""The trained fixture answers at int4, and its questions can fail."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny
from conftest import to_gguf
from onnx_peer import to_onnx
from safetensors.numpy import load_file, save_file

from sampan import runtime
from sampan.runtime import Options, Sampling

sys.path.insert(0, str(tiny.FIXTURE.parent))
import facts


def share_right(path: Path, questions: Sequence[facts.Question]) -> float:
    right = 0
    with runtime.open(path) as session:
        for q in questions:
            prompt = session.tokenize_chat([{"role": "user", "content": q.text}])
            right += q.answer in session.generate(prompt, Options(max_tokens=40, sampling=Sampling()))
    return right / len(questions)


MODELS = ("trained", "trained-kimi")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_int4_answers_like_f16(name: str, gguf: Callable[[str, str], Path]) -> None:
    for questions in (facts.capital_questions()[:165], facts.capital_questions()[165:], facts.sum_questions()):
        for quant in ("f16", "q4_k_m"):
            assert share_right(gguf(name, quant), questions) >= 0.95, quant


@pytest.mark.everyday("trained")
@pytest.mark.parametrize("name", MODELS)
def test_int4_answers_in_onnx(name: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    to_onnx(model(name), tmp_path / "out", "int4")
    assert share_right(tmp_path / "out", facts.capital_questions()[::3]) >= 0.95


@pytest.mark.parametrize("name", MODELS)
def test_sums_that_stood_in_no_training_text(name: str, gguf: Callable[[str, str], Path]) -> None:
    pairs = [(a, b) for a, b in facts.sums() if facts.is_held_out_sum(a, b)][::3]
    questions = [facts.Question(facts.HELD_OUT_SUM_EN.format(a=a, b=b), f"= {a + b}.", "en", "sum") for a, b in pairs]
    assert len(questions) > 60
    assert share_right(gguf(name, "q4_k_m"), questions) >= 0.9


@pytest.mark.slow
def test_the_questions_can_fail(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Noise of 80 % on every matrix: the kind of damage that a wrong scale or layout does."""
    noisy = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "noisy"))
    stored = load_file(noisy / "model.safetensors")
    rng = np.random.default_rng(1)
    for name, value in stored.items():
        if value.ndim == 2:
            exact = value.astype(np.float32)
            noise = rng.standard_normal(exact.shape, np.float32) * (0.8 * exact.std())
            stored[name] = (exact + noise).astype(ml_dtypes.bfloat16)
    save_file(stored, noisy / "model.safetensors")
    to_gguf(noisy, tmp_path / "noisy.gguf", "f16")
    questions = facts.capital_questions()[::3]
    assert share_right(tmp_path / "noisy.gguf", questions) < share_right(gguf("trained", "f16"), questions) - 0.1


@pytest.mark.parametrize("folder", [tiny.FIXTURE, tiny.KIMI], ids=MODELS)
def test_the_fixture_is_what_its_script_says(folder: Path) -> None:
    training = json.loads((folder / "training.json").read_text())
    stored = load_file(folder / "model.safetensors")
    assert training["parameters"] == sum(v.size for v in stored.values()) <= 4_000_000
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 8_000_000
    assert len(facts.CAPITALS) >= 150 and 0 < training["final_loss"] < 0.5
    taught = [t for t, _ in (*facts.TAUGHT_EN, *facts.TAUGHT_ZH, *facts.TAUGHT_SUMS)]
    assert not {facts.HELD_OUT_EN, facts.HELD_OUT_ZH, facts.HELD_OUT_SUM_EN, facts.HELD_OUT_SUM_ZH} & set(taught)
