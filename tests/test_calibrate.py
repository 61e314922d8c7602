"""Statistics against forward hooks of transformers, every kind of layer; the texts; what is refused."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import hooks
import numpy as np
import pytest
import tiny
from conftest import run_cli
from validating import cache

from sampan import runtime
from sampan.calibrate import text
from sampan.calibrate.calibration import calibrate
from sampan.errors import InputError
from sampan.quantize.stats import open_stats
from sampan.validate import windows

__all__ = ["cache"]  # a fixture of every test here

# dense, tied; biases and rotation by neighbours; experts with shared ones; latents; delta nets of both orders; KDA
MODELS = (
    "trained", "llama", "qwen2_moe", "deepseek_v3", "deepseek_v3-no-q-lora", "qwen3_next", "qwen3_5_moe",
    "kimi_linear", "glm4", "glm4_moe", "qwen3_vl_moe",
)  # fmt: skip
QUICK = {"trained", "deepseek_v3", "qwen3_5_moe", "kimi_linear"}
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]


@contextlib.contextmanager
def silent(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    yield lambda n: None


@pytest.mark.everyday("trained", "qwen3_5_moe")
@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_hooks_in_transformers(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text(windows.built_in("nasty.json")[:900])
    found = calibrate(str(gguf(name, "f32")), tmp_path / "s.gguf", silent, texts=[tmp_path / "mine.txt"], threads=1)
    with runtime.open(gguf(name, "f32"), runtime.EngineOptions(vocabulary_only=True)) as s:
        ids = s.tokenize((tmp_path / "mine.txt").read_text())
    cut = text.windows([ids])
    assert found.tokens == sum(map(len, cut)) > 250
    theirs = hooks.sums_of_squares(model(name), cut)
    stats = open_stats(tmp_path / "s.gguf")
    assert stats.entries.keys() == theirs.keys() and len(theirs) == found.matrices
    for tensor, (sums, counts) in theirs.items():
        ours = stats.entries[tensor].counts
        np.testing.assert_array_equal(np.broadcast_to(ours, counts.shape), counts, tensor)
        for n, wanted in enumerate(sums):
            if counts[n]:
                mean = stats.inputs(tensor, n, len(sums)).weights()
                np.testing.assert_allclose(
                    mean, wanted / counts[n], rtol=2e-3, atol=1e-4 * wanted.mean() / counts[n], err_msg=tensor
                )


def test_experts_that_no_token_went_to_are_told(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Forty tokens, six experts, two a token; the counts are those of the file."""
    (tmp_path / "few.txt").write_text("the " * 40)
    found = calibrate(str(gguf("qwen3_moe", "f32")), tmp_path / "s.gguf", silent, texts=[tmp_path / "few.txt"])
    stats = open_stats(tmp_path / "s.gguf")
    counts = [stats.entries[f"blk.{layer}.ffn_down_exps.weight"].counts for layer in range(4)]
    assert all(sum(c) == 2 * found.tokens for c in counts) and found.experts == 24
    assert found.unseen == tuple((i, e) for i, c in enumerate(counts) for e, n in enumerate(c) if n == 0)
    assert found.rare == tuple((i, e) for i, c in enumerate(counts) for e, n in enumerate(c) if 0 < n < 16)
    assert found.unseen, "nothing to tell"
    layer, expert = found.unseen[0]
    assert (stats.inputs(f"blk.{layer}.ffn_up_exps.weight", expert, 6).weights() == 1).all()
    told = run_cli(
        "calibrate", str(gguf("qwen3_moe", "f32")), "-o", str(tmp_path / "b.gguf"), "--text", str(tmp_path / "few.txt")
    )
    assert f"no token went to {len(found.unseen)} of 24 experts (expert {expert} of layer {layer}" in told.stderr
    assert (tmp_path / "b.gguf").read_bytes() != b"" and told.returncode == 0, told.stderr


def test_a_checkpoint_and_its_file_give_the_same(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("A short text is enough here. " * 20)
    sources = {"folder": str(tiny.FIXTURE), "file": str(gguf("trained", "f32"))}
    for name, source in sources.items():
        calibrate(source, tmp_path / f"{name}.safetensors", silent, texts=[tmp_path / "mine.txt"], threads=1)
    a, b = (open_stats(tmp_path / f"{name}.safetensors") for name in sources)
    assert a.about["source_sha256"] == b.about["source_sha256"], "both are of the same shards"
    assert a.about["tokens"] == b.about["tokens"] and a.about["text"] == "mine"
    for name in a.entries:
        np.testing.assert_array_equal(a.inputs(name, 0, 1).weights(), b.inputs(name, 0, 1).weights())


def test_the_imatrix_is_in_llama_cpps_form(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Keys, shapes and types as tools/imatrix/imatrix.cpp writes them, by the gguf package."""
    from gguf import GGUFReader

    (tmp_path / "mine.txt").write_text("A short text is enough here. " * 20)
    calibrate(str(gguf("deepseek_v3", "f32")), tmp_path / "s.gguf", silent, texts=[tmp_path / "mine.txt"], threads=1)
    reader = GGUFReader(tmp_path / "s.gguf")
    keys = {k: f.contents() for k, f in reader.fields.items()}
    assert keys["general.type"] == "imatrix" and keys["imatrix.datasets"] == ["mine"]
    assert keys["imatrix.chunk_size"] == 512 and keys["imatrix.chunk_count"] == 1
    shapes = {t.name: tuple(map(int, t.shape)) for t in reader.tensors}
    assert shapes["blk.1.ffn_up_exps.weight.in_sum2"] == (256, 6)
    assert shapes["blk.1.ffn_up_exps.weight.counts"] == (1, 6)
    assert shapes["blk.1.attn_k_b.weight.in_sum2"] == (4 * 128, 1), "heads have one count together"
    assert shapes["blk.1.attn_k_b.weight.counts"] == (1, 1)
    assert {t.tensor_type.name for t in reader.tensors} == {"F32"}


def _pieces(body: str) -> list[str]:
    """Words, and Chinese characters one by one."""
    return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", body.lower())


def _grams(body: str, n: int = 13) -> set[tuple[str, ...]]:
    words = _pieces(body)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _flat(raw: str) -> str:
    """The words of conversations, as one text."""
    return " ".join(m["content"] for c in json.loads(raw) for m in c["messages"])


def test_no_thirteen_words_are_those_of_the_evaluation() -> None:
    """Else a text that weights were fitted to would tell how good they are."""
    names = ("zh.txt", "en.txt", "code.txt", "long_zh.txt", "long_en.txt")
    judged = [windows.built_in(n) for n in names] + [
        _flat(windows.built_in("chat.json")),
        windows.built_in("nasty.json"),
    ]
    ours = text.built_in(lambda c: " ".join(m["content"] for m in c["messages"]))
    assert list(ours) == ["en", "zh", "code", "maths", "chat"]
    for name, body in ours.items():
        assert len(_grams(body)) > 300, name
        for other in judged:
            assert not _grams(body) & _grams(other), name
    assert _grams(judged[1]) & _grams(judged[1][100:900]), "the comparison finds what is there"


def test_windows_of_all_texts_take_turns() -> None:
    cut = text.windows([list(range(1200)), list(range(5000, 5040)), list(range(9000, 9020))])
    assert [(w[0], len(w)) for w in cut] == [(0, 512), (5000, 40), (512, 512), (1024, 176)]


def test_refused_in_one_line(model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    source, good = str(gguf("qwen3_moe", "f32")), tmp_path / "s.gguf"
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "there.gguf").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "link.gguf").symlink_to("there.gguf")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    cases: list[tuple[str, Path, list[Path], str]] = [
        (source, tmp_path / "s.dat", [], "--output: expected a name that ends with .safetensors or .gguf, found s.dat"),
        (source, tmp_path / "there.gguf", [], "there.gguf: expected a new file name, found an existing file"),
        (source, tmp_path / "no" / "s.gguf", [], "--output: expected a file name in a folder that exists"),
        (source, good, [tmp_path / "short.txt"], "the text: expected at least 32 tokens, found fewer"),
        (
            str(tmp_path / "onnx"),
            good,
            [],
            "onnx: expected a checkpoint or a GGUF file, found a folder of a model that runs",
        ),
    ]
    for source_, out, texts, message in cases:
        with pytest.raises(InputError, match=message):
            calibrate(source_, out, silent, texts=texts)
    for own, out in (("there.gguf", "there.gguf"), ("there.gguf", "link.gguf"), ("folder", "folder/model.safetensors")):
        with pytest.raises(InputError, match=r"--output: expected a file that is not part of the source"):
            calibrate(str(tmp_path / own), tmp_path / out, silent, overwrite=True)
    assert (tmp_path / "folder" / "model.safetensors").read_bytes() == b"mine"
    assert not good.exists() and (tmp_path / "there.gguf").read_bytes() == b"mine"
