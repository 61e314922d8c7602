"""Statistics in ONNX folders: every matrix is rounded with the weights of its own columns, wherever it lies."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stats_files
from numpy.typing import NDArray
from onnx_peer import to_onnx

from sampan.errors import InputError
from sampan.quantize import decode_rows, encode_rows
from sampan.quantize.blocked import BlockType
from sampan.validate.artifact import Stored, open_onnx, read_rows

Floats = NDArray[np.float32]


def rows(t: Stored) -> Floats:
    with t.path.open("rb") as f:
        return read_rows(t, f.fileno(), 0, t.rows)


def as_checkpoint(name: str, tensor: str, weights: dict[str, Floats], t: Stored) -> Floats:
    """Importance [matrices, columns] of a tensor in the checkpoint's order, of that in a GGUF file's."""
    if re.search(r"attn_[kv]_b\.", tensor):
        tensor = re.sub("attn_[kv]_b", "attn_kv_b", tensor)
    found = weights[tensor].reshape(-1, t.columns)
    if name == "qwen3_5_moe" and "ssm_out" in tensor:  # 2 key heads, 3 heads of v each, 32 wide: GGUF has them tiled
        found = found.reshape(3, 2, 32).swapaxes(0, 1).reshape(1, -1)
    return found


@pytest.mark.everyday("deepseek_v3")
@pytest.mark.parametrize("name", ["qwen3_5_moe", "deepseek_v3", pytest.param("kimi_linear", marks=pytest.mark.slow)])
def test_every_matrix_has_its_own_weights(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    found = stats_files.latents(stats_files.made_up(gguf(name, "f32")), 256)
    stats = stats_files.write(tmp_path / "stats.gguf", found)
    weights = stats_files.as_llama_reads(stats)
    to_onnx(model(name), tmp_path / "exact", "fp32")
    to_onnx(model(name), tmp_path / "out", "int4", stats=stats)
    exact, ours, compared = open_onnx(tmp_path / "exact"), open_onnx(tmp_path / "out"), set()
    for tensor, t in ours.tensors.items():
        if not isinstance(t.type, BlockType):
            continue
        x, y = rows(exact.tensors[tensor]), rows(t)
        own = as_checkpoint(name, tensor, weights, t) if tensor.startswith("blk.") else [None]
        for part, got, w in zip(np.array_split(x, len(own)), np.array_split(y, len(own)), own, strict=True):
            raw, again = np.empty(len(part) * t.type.row_bytes(t.columns), np.uint8), np.empty_like(part)
            encode_rows(t.type, part, raw, w)
            decode_rows(t.type, raw, again)
            np.testing.assert_array_equal(got, again, tensor)
            compared.add(tensor.split(".")[-2])
    assert {"ffn_down_exps", "ffn_up_exps", "attn_output"} <= compared
    assert name != "deepseek_v3" or {"attn_k_b", "attn_v_b"} <= compared
    assert name != "qwen3_5_moe" or "ssm_out" in compared


def test_latents_that_a_file_of_llama_cpp_lacks(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    stats = stats_files.write(tmp_path / "stats.gguf", stats_files.made_up(gguf("deepseek_v3", "f32")))
    with pytest.raises(InputError, match=r"found none of blk.0.attn_kv_b.weight, .* and 1 more; calibrate again"):
        to_onnx(model("deepseek_v3"), tmp_path / "out", "int4", stats=stats)
