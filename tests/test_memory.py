"""What a model needs, from its header, against what llama.cpp itself allocates."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sampan import gguf as container
from sampan.errors import InputError
from sampan.gguf import Kind, Value
from sampan.runtime.memory import ENGINE, need, room

# its log at that context
PEER = """
import ctypes, sys
from llama_cpp import llama_cpp as lib
@lib.llama_log_callback
def say(level, text, _): print(text.decode(errors="replace"), end="", flush=True)
lib.llama_log_set(say, ctypes.c_void_p(0))
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.n_seq_max = int(sys.argv[3])
params.n_ctx, params.n_batch, params.n_ubatch = int(sys.argv[2]) * params.n_seq_max, 512, 512
params.kv_unified = params.n_seq_max > 1
assert lib.llama_init_from_model(model, params)
"""


@pytest.mark.everyday("*-1000-1")
@pytest.mark.parametrize(("context", "sequences"), [(1000, 1), (8192, 1), (1024, 4)])
@pytest.mark.parametrize(
    "name",
    [
        "trained",
        "trained-kimi",
        "qwen2-f32-gqa4",
        "llama-tied-head-dim",
        "qwen3_next",
        "qwen3_5-mtp",
        "kimi_linear",
        "qwen3_5_moe",
    ],
)
def test_the_cache_is_what_llama_cpp_allocates(
    gguf: Callable[[str, str], Path], name: str, context: int, sequences: int
) -> None:
    path = gguf(name, "q8_0")
    command = [sys.executable, "-c", PEER, str(path), str(context), str(sequences)]
    log = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    caches = re.findall(r"^(?:llama_kv_cache|llama_memory_recurrent): size = +([\d.]+) MiB", log, re.MULTILINE)
    assert caches, log
    found = need(path, context, sequences)
    assert found.cache / 2**20 == pytest.approx(sum(map(float, caches)), abs=0.006 * len(caches))
    weights = re.findall(r"(?:Mapped|CPU) model buffer size = +([\d.]+) MiB", log)
    assert weights and found.weights / 2**20 == pytest.approx(sum(map(float, weights)), rel=0.02, abs=0.05)
    work = re.findall(r"(?:compute|output) buffer size = +([\d.]+) MiB", log)
    assert work and sum(map(float, work)) * 2**20 < found.margin - ENGINE


def header(tmp_path: Path, changes: dict[str, object]) -> Path:
    keys: dict[str, object] = {
        "general.architecture": "qwen3", "qwen3.block_count": 1, "qwen3.context_length": 8192,
        "qwen3.embedding_length": 64, "qwen3.attention.head_count": 4,
    } | changes  # fmt: skip
    metadata = {}
    for key, value in keys.items():
        if isinstance(value, str):
            metadata[key] = Value(Kind.STRING, value)
        elif isinstance(value, list):
            metadata[key] = Value(Kind.ARRAY, value, Kind.INT64)
        elif value is not None:
            metadata[key] = Value(Kind.INT64, value)
    path = tmp_path / "x.gguf"
    path.write_bytes(container.encode(metadata, [container.Tensor("x", (8,), 0, 0)]) + struct.pack("<8f", *range(8)))
    return path


def test_defaults(tmp_path: Path) -> None:
    """As many key heads as heads, of the width that is theirs; a context of 4096 at most."""
    found = need(header(tmp_path, {}))
    assert (found.context, found.weights, found.cache) == (4096, 32, 4096 * 2 * 2 * 64)
    assert need(header(tmp_path, {"qwen3.context_length": 100})).context == 100


REFUSED = [
    ({"general.architecture": None}, "this GGUF file holds no model"),
    ({"qwen3.block_count": None}, "qwen3.block_count: expected a whole number below 2³¹, found none"),
    ({"qwen3.block_count": 2**30}, "qwen3.block_count: expected at most 1, one tensor a layer, found 1073741824"),
    ({"qwen3.context_length": -1}, "qwen3.context_length: expected a whole number below 2³¹, found -1"),
    ({"qwen3.attention.head_count_kv": [2, 2]}, "head_count_kv: expected 1 values, found 2"),
    ({"qwen3.attention.key_length": "wide"}, "key_length: expected a whole number below 2³¹, found wide"),
    ({"qwen3.attention.recurrent_layers": [0] * 9}, "recurrent_layers: expected 1 values, found"),
    ({"qwen3.attention.recurrent_layers": [1]}, "ssm.conv_kernel: expected a whole number below 2³¹, found none"),
    ({"split.count": 2}, "expected a model in one file, found one part of a split one"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), REFUSED)
def test_headers_that_do_not_tell(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError) as e:
        need(header(tmp_path, changes))
    assert expected in str(e.value)


def test_room_is_what_need_leaves(tmp_path: Path) -> None:
    """The sizes of Qwen3-8B's config.json; its 36 layers of 8 key/value heads as one of 288."""
    found = need(header(tmp_path, {
        "qwen3.embedding_length": 4096, "qwen3.feed_forward_length": 12288, "qwen3.attention.head_count": 32,
        "qwen3.attention.head_count_kv": 8 * 36, "qwen3.attention.key_length": 128,
        "qwen3.attention.value_length": 128, "tokenizer.ggml.tokens": [0] * 151_936,
    }))  # fmt: skip
    assert room(found.total) == found.weights
    assert room(found.total - found.weights) == room(0) == 0
