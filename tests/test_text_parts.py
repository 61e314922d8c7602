"""Qwen3-VL's text, GLM's layers beside the model, MiniMax's words: what other families' checkpoints have not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny
from conftest import run_cli, to_gguf
from onnx_peer import to_onnx
from safetensors.numpy import load_file, save_file

from sampan import runtime
from sampan.checkpoint import open_folder
from sampan.convert.encoding import Part, StoredTensor, buffer_size, read_parts
from sampan.convert.storage.plain import ENCODING, turned
from sampan.convert.tokenizers.byte_level import CASES, PRE_TOKENIZERS
from sampan.errors import InputError
from sampan.gguf import read_header
from sampan.safetensors import TensorInfo

Model = Callable[[str], Path]
Gguf = Callable[[str, str], Path]


def edited(source: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, folder)
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def data(path: Path) -> bytes:
    return path.read_bytes()[read_header(path).data_start :]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_any_rows_of_matrices_that_lie_transposed(dtype: str, tmp_path: Path) -> None:
    kind = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}[dtype]
    values = np.random.default_rng(4).standard_normal((3, 10, 14)).astype(kind)
    (tmp_path / "t").write_bytes(b"xx" * 8 + values.tobytes())
    info = TensorInfo("t", dtype, values.shape, 16, values.nbytes)
    stored = turned(StoredTensor("t", values.shape, ENCODING, (Part(0, info),)), "t")
    expected = values.astype(np.float32).swapaxes(1, 2).reshape(-1, 10)
    assert stored.shape == (3, 14, 10)
    with (tmp_path / "t").open("rb") as f:
        for start, rows in ((0, 42), (0, 1), (13, 2), (5, 30), (41, 1)):
            reads = stored.encoding.reads(stored, start, rows)
            buffers = read_parts(stored, reads, {0: f.fileno()}, np.empty(buffer_size(reads), np.uint8))
            out = np.empty((rows, 10), np.float32)
            stored.encoding.decode(stored, buffers, start, out)
            assert np.array_equal(out, expected[start : start + rows])


def test_experts_that_transformers_saved_give_the_same_file(model: Model, gguf: Gguf, tmp_path: Path) -> None:
    """It writes the matrices as it holds them, the makers transposed ones; the shape tells."""

    def turn(stored: dict[str, np.ndarray]) -> None:
        for name in [n for n in stored if ".experts." in n]:
            stored[name] = np.ascontiguousarray(stored[name].swapaxes(1, 2))

    folder = edited(model("qwen3_vl_moe"), tmp_path / "m", turn)
    for quant in ("q8_0", "q4_k_m"):
        to_gguf(folder, tmp_path / "m.gguf", quant)
        assert data(tmp_path / "m.gguf") == data(gguf("qwen3_vl_moe", quant))


def test_experts_of_another_shape_are_refused_as_they_lie(model: Model, tmp_path: Path) -> None:
    name = "model.language_model.layers.2.mlp.experts.gate_up_proj"
    folder = edited(model("qwen3_vl_moe"), tmp_path / "m", lambda s: s.update({name: s[name][:, :, :64].copy()}))
    with pytest.raises(InputError, match=r"gate_up_proj: expected shape \[6, 256, 192\], found \[6, 256, 64\]"):
        to_gguf(folder, tmp_path / "m.gguf", "q8_0")


@pytest.mark.slow
def test_small_memory_reads_transposed_experts_alike(model: Model, gguf: Gguf, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    done = run_cli(
        "convert",
        str(model("qwen3_vl_moe")),
        "-o",
        str(out),
        "--quant",
        "q8_0",
        "--max-memory",
        "100000",
        "--jobs",
        "1",
    )
    assert done.returncode == 0, done.stderr
    assert data(out) == data(gguf("qwen3_vl_moe", "q8_0"))
    done = run_cli("validate", str(model("qwen3_vl_moe")), str(out), "--windows", "1")
    assert "tensors        equal  51 tensors" in done.stdout, done.stdout + done.stderr


def test_pictures_are_left_out_by_name(model: Model, tmp_path: Path) -> None:
    for to in ("gguf", "onnx"):
        done = run_cli("convert", str(model("qwen3_vl")), "--to", to, "--plan")
        assert done.returncode == 0 and "left out: the vision tower, " in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["glm4_moe", "glm4_moe_lite"])
def test_layers_that_predict_further_tokens_are_left_out_by_name(
    name: str, model: Model, gguf: Gguf, tmp_path: Path
) -> None:
    def add(stored: dict[str, np.ndarray]) -> None:
        last = {k.replace("layers.3.", "layers.4."): v for k, v in stored.items() if ".layers.3." in k}
        one = np.ones(256, ml_dtypes.bfloat16)
        names = ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")
        stored.update(last | {f"model.layers.4.{n}": one for n in names})

    folder = edited(model(name), tmp_path / "m", add)
    tiny.edit_json(folder / "config.json", num_mtp_layers=None, num_nextn_predict_layers=1)
    conversion = to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert any(n.startswith("left out: the multi-token prediction layers, ") for n in conversion.notes)
    assert data(tmp_path / "m.gguf") == data(gguf(name, "q8_0"))


TEXTS = ("Hello World's iPhone 12345", "приветМир ПРИВЕТ éÀccent", "हिन्दी नमस्ते ไทย", "a\n\n b/\r\n  c")


def test_words_of_minimax_are_refused_by_gguf_and_right_in_onnx(model: Model, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = Path(shutil.copytree(model("minimax_m2"), tmp_path / "m"))
    file = folder / "tokenizer.json"
    parsed = json.loads(file.read_text())
    split = next(s for s in parsed["pre_tokenizer"]["pretokenizers"] if s["type"] == "Split")
    split["pattern"] = {"Regex": next(regexes[0] for regexes, name in PRE_TOKENIZERS.items() if name == CASES)}
    file.write_text(json.dumps(parsed))
    tiny.edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(InputError, match=r"pre_tokenizer: llama.cpp's minimax-m2 .* --to onnx converts"):
        to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert not list(tmp_path.glob("m.gguf*"))
    to_onnx(folder, tmp_path / "out", "int4")
    theirs = Tokenizer.from_file(str(file))
    with runtime.open(tmp_path / "out") as session:
        for text in TEXTS:
            assert (
                session.tokenize(text, special=False, around=False) == theirs.encode(text, add_special_tokens=False).ids
            )


def test_llama_cpp_splits_otherwise_than_minimax(model: Model, tmp_path: Path) -> None:
    """What the refusal says, by llama.cpp's own expression under that name (src/llama-vocab.cpp)."""
    import regex

    ends = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
    lead, rest = r"[^\r\n\p{L}\p{N}]?", r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    upper, lower = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
    theirs = regex.compile(f"{lead}{upper}*{lower}+{ends}|{lead}{upper}+{lower}*{ends}|{rest}")
    ours = regex.compile(next(regexes[0] for regexes, name in PRE_TOKENIZERS.items() if name == CASES))
    words = [[m[0] for m in r.finditer("приветМир हिन्दी helloWorld")] for r in (ours, theirs)]
    assert words[0] == ["привет", "Мир", " हिन्दी", " hello", "World"]
    assert words[1][0] == "приветМир" and " हिन्दी" not in words[1] and words[1][-2:] == [" hello", "World"]


def test_makers_name_of_fp8_is_known(model: Model) -> None:
    checkpoint = open_folder(model("minimax_m2"))
    from sampan.convert.quantization import read_rules

    config = checkpoint.config | {
        "quantization_config": {
            "quant_method": "fp8", "fmt": "float8_e4m3fn", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128], "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        }
    }  # fmt: skip
    from dataclasses import replace

    (rule,) = read_rules(replace(checkpoint, config=config))
    assert rule.covers("model.layers.0.block_sparse_moe.gate") is False
    assert rule.covers("model.layers.0.block_sparse_moe.experts.3.w1") is not False
