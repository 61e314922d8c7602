"""Bad input: one clear line, and nothing under the final name."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes bfloat16 known to numpy and safetensors
import numpy as np
import pytest
import tiny
from conftest import run_cli
from safetensors.numpy import load_file, save_file

from sampan.checkpoint import open_folder
from sampan.convert.family import read_architecture
from sampan.convert.tokenizer import read_tokenizer
from sampan.errors import InputError
from sampan.gguf import read_header

HERE = Path(__file__).parent / "hostile"
EXPECTED: dict[str, str] = json.loads((HERE / "expected.json").read_text())


def cases(folder: str) -> list[str]:
    return [case for case in EXPECTED if case.startswith(folder + "/")]


def test_every_hostile_file_has_its_text() -> None:
    files = {str(p.relative_to(HERE)) for p in HERE.glob("*/*") if p.parent.name != "__pycache__"}
    assert files == set(EXPECTED)


def test_every_hostile_file_is_what_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    made = runpy.run_path(str(HERE / "make.py"))["made"]()
    assert {name: line for name, (_, line) in made.items()} == EXPECTED
    assert [name for name, (data, _) in made.items() if (HERE / name).read_bytes() != data] == []


def refused(case: str, run: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        run()
    message = str(caught.value)
    assert EXPECTED[case] in message
    assert "\n" not in message and len(message) < 600


@pytest.mark.parametrize("case", cases("safetensors"))
def test_safetensors(case: str, tmp_path: Path) -> None:
    shutil.copy(tiny.FIXTURE / "config.json", tmp_path)
    shutil.copy(HERE / case, tmp_path / "model.safetensors")
    refused(case, lambda: open_folder(tmp_path))


@pytest.mark.parametrize("case", cases("index"))
def test_index(case: str, tmp_path: Path) -> None:
    (tmp_path.parent / "secret.safetensors").write_bytes((tiny.FIXTURE / "model.safetensors").read_bytes())
    shutil.copytree(tiny.FIXTURE, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    shutil.copy(HERE / case, tmp_path / "m" / "model.safetensors.index.json")
    refused(case, lambda: open_folder(tmp_path / "m"))


@pytest.mark.parametrize("case", cases("config"))
def test_config(case: str, tmp_path: Path) -> None:
    from sampan.convert.formats._llama import check_engine
    from sampan.convert.formats.gguf import known

    shutil.copytree(tiny.FIXTURE, tmp_path / "m")
    shutil.copy(HERE / case, tmp_path / "m" / "config.json")

    def read() -> None:
        checkpoint = open_folder(tmp_path / "m")
        family, arch = read_architecture(checkpoint)
        check_engine(checkpoint.folder / "config.json", known(family, arch), arch)

    refused(case, read)


@pytest.mark.parametrize("case", cases("tokenizer"))
def test_tokenizer(case: str, tmp_path: Path) -> None:
    shutil.copy(HERE / case, tmp_path / "tokenizer.json")
    ends = "<|end|>" in (HERE / case).read_text()  # else it would be a token that tokenizer.json lacks
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}' if ends else "{}")
    refused(case, lambda: read_tokenizer(tmp_path, 8))


@pytest.mark.parametrize("case", cases("tokenizer-model"))
def test_sentencepiece(case: str, tmp_path: Path) -> None:
    shutil.copy(HERE / case, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    started = time.monotonic()
    refused(case, lambda: read_tokenizer(tmp_path, 300))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("case", cases("gguf"))
def test_gguf(case: str) -> None:
    refused(case, lambda: read_header(HERE / case))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the trained fixture to damage."""
    return Path(shutil.copytree(tiny.FIXTURE, tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the tensors of a single-file checkpoint."""
    stored = load_file(folder / "model.safetensors")
    edit(stored)
    save_file({k: np.ascontiguousarray(v) for k, v in stored.items()}, folder / "model.safetensors")


def assert_refused(folder: Path, *lines: str, quant: str = "q4_0", options: tuple[str, ...] = ()) -> None:
    """The command fails with exit code 2 and one line, and leaves nothing behind."""
    out = folder.parent / "out" / "model.gguf"
    result = run_cli("convert", str(folder), "--quant", quant, "-o", str(out), *options)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1, result.stderr
    for line in lines:
        assert line in errors[0]
    assert not out.parent.exists() or not list(out.parent.iterdir())


Q = "model.layers.1.self_attn.q_proj.weight"


def test_nan(copy: Path) -> None:
    def edit(t: dict[str, Any]) -> None:
        t[Q][300, 7] = np.nan

    change(copy, edit)
    assert_refused(copy, f"model.safetensors: {Q}: expected finite values, found nan in row 300")


def test_infinity_in_a_norm(copy: Path) -> None:
    change(copy, lambda t: t["model.norm.weight"].__setitem__(3, -np.inf))
    assert_refused(copy, "model.safetensors: model.norm.weight: expected finite values, found -inf in row 0")


def test_an_all_zero_matrix(copy: Path) -> None:
    change(copy, lambda t: t[Q].fill(0))
    assert_refused(copy, f"{Q}: expected values, found nothing but zeros in it; --allow-zero converts it all the same")
    out = copy.parent / "zero.gguf"
    assert run_cli("convert", str(copy), "--allow-zero", "-o", str(out)).returncode == 0
    assert out.exists()


def test_an_all_zero_expert(model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("qwen2_moe"), tmp_path / "model"))
    dead = "model.layers.2.mlp.experts.4.up_proj.weight"
    change(folder, lambda t: t[dead].fill(0))
    assert_refused(folder, f"{dead}: expected values, found nothing but zeros")


def test_no_package_adds_lines_of_its_own(copy: Path) -> None:
    """The gguf package warns of such a template."""
    tiny.edit_json(copy / "tokenizer_config.json", chat_template=1)
    assert_refused(copy, "tokenizer_config.json: chat_template: neither a text nor named texts: 1; mend or remove it")


def test_zero_biases_are_fine(model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("qwen2"), tmp_path / "model"))
    change(folder, lambda t: [t[k].fill(0) for k in t if k.endswith(".bias")])
    assert run_cli("convert", str(folder), "-o", str(tmp_path / "m.gguf")).returncode == 0


def test_a_value_that_float16_cannot_hold(copy: Path) -> None:
    change(copy, lambda t: t[Q].__setitem__((0, 0), 1e6))
    assert_refused(copy, f"{Q}: its values do not fit f16", "choose another --quant", quant="f16")


def test_missing_tensor(copy: Path) -> None:
    change(copy, lambda t: t.pop(Q) is None)
    assert_refused(copy, f"expected the tensor {Q}, found none of that name in any shard")


def test_missing_head(copy: Path) -> None:
    tiny.edit_json(copy / "config.json", tie_word_embeddings=False)
    assert_refused(copy, "expected the tensor lm_head.weight", "tie_word_embeddings is false in config.json")


def test_wrong_shape(copy: Path) -> None:
    change(copy, lambda t: t.update({Q: t[Q][:-1]}))
    assert_refused(copy, f"{Q}: expected shape [512, 256], found [511, 256]")


def test_a_tensor_that_no_rule_claims(copy: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight_scale_inv"
    change(copy, lambda t: t.update({name: np.ones((4, 2), np.float32)}))
    assert_refused(copy, f"{name}: expected only tensors that qwen3 knows, found one that no rule claims")


@pytest.mark.slow
def test_known_leftovers_are_left(copy: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(copy, lambda t: t.update({name: np.ones(64, np.float32)}))
    assert run_cli("convert", str(copy), "-o", str(copy.parent / "m.gguf")).returncode == 0


def test_unknown_dtype(copy: Path) -> None:
    change(copy, lambda t: t.update({Q: t[Q].astype(np.float64)}))
    assert_refused(copy, f"{Q}: expected a dtype among BF16, F16, F32, found F64")


@pytest.mark.slow
def test_a_redundant_head_is_written_once(copy: Path) -> None:
    change(copy, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    out = copy.parent / "m.gguf"
    result = run_cli("convert", str(copy), "-o", str(out))
    assert result.returncode == 0
    assert "lm_head.weight is a copy of the tied embedding: written once" in result.stderr
    assert "output.weight" not in {t.name for t in read_header(out).tensors}


def test_truncated_shard(copy: Path) -> None:
    path = copy / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)
    assert_refused(copy, "model.safetensors: expected 7351624 bytes as its header says", "the file is truncated")


def test_pickle(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert_refused(copy, "pytorch_model.bin", "a pickle, which can run code and is never opened")


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert_refused(copy, "expected model.safetensors or model.safetensors.index.json, found neither")


def test_no_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert_refused(copy, "config.json: expected a file, found none")


def test_no_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert_refused(copy, "no tokenizer.json or vocab.json or tokenizer.model or tiktoken.model; load the tokenizer")


def test_unreadable_tokenizer_config(copy: Path) -> None:
    (copy / "tokenizer_config.json").write_text("{")
    assert_refused(copy, "tokenizer_config.json: expected JSON")


def test_unknown_scheme_and_format(copy: Path) -> None:
    assert_refused(copy, "--quant: expected one of a16w4, a16w8, bf16, f16,", "found 'q9_9'", quant="q9_9")
    assert_refused(copy, "--to: expected one of gguf, onnx, found 'tflite'", options=("--to", "tflite"))


def test_memory_that_is_too_small(copy: Path) -> None:
    assert_refused(copy, "--max-memory: expected at least", "or fewer --jobs", options=("--max-memory", "1k"))
    assert_refused(copy, "--max-memory: expected a size such as 600M", options=("--max-memory", "lots"))


def test_output_equal_to_input(copy: Path) -> None:
    for target in (copy, copy / "model.safetensors", copy / "config.json"):
        before = sorted(p.name for p in copy.iterdir())
        result = run_cli("convert", str(copy), "--overwrite", "-o", str(target))
        assert result.returncode == 2
        assert "expected a file that is not part of the source" in result.stderr
        assert sorted(p.name for p in copy.iterdir()) == before


def test_output_that_exists(copy: Path) -> None:
    out = copy.parent / "m.gguf"
    out.write_text("precious")
    result = run_cli("convert", str(copy), "-o", str(out))
    assert result.returncode == 2
    assert "expected a new file name, found an existing file; use --overwrite to replace it" in result.stderr
    assert out.read_text() == "precious"


def test_output_that_is_a_folder(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = run_cli("convert", str(copy), "-o", str(tmp_path / "folder"))
    assert result.returncode == 2
    assert "expected a file name for the output, found a folder" in result.stderr


def test_full_disk(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """posix_fallocate is what meets a full disk; it says so here as the kernel would."""
    from conftest import to_gguf

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"m\.gguf: expected 1\.\d+ MB of free disk, found"):
        to_gguf(copy, tmp_path / "out" / "m.gguf", "q2_k")
    assert [p.name for p in (tmp_path / "out").iterdir()] == []
