"""What quantisers write beside the weights: scales of activations and of the cache, biases of zeros."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import pytest
from conftest import Pair, to_gguf
from test_stream import streamed

from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.errors import InputError

LAYERS, ONE = range(2), np.array([0.01], np.float32)
MODULES = [f"model.layers.{i}.{m}_proj." for i in LAYERS for m in ("self_attn.q", "self_attn.o", "mlp.up")]
ATTENTION = [f"model.layers.{i}.self_attn." for i in LAYERS]
ACTIVATIONS, CACHE = "scales of activations", "scales of the KV cache"
Tensors = dict[str, np.ndarray[Any, Any]]

# (the encoding, what is added, under which name it is left out): names as the packages write them
WRITERS: dict[str, tuple[str, Tensors, str]] = {
    "llm-compressor": ("fp8-tensor", {m + "input_scale": ONE for m in MODULES}, ACTIVATIONS),
    "llm-compressor-outputs": ("fp8-channel", {m + "output_scale": ONE for m in MODULES}, ACTIVATIONS),
    "llm-compressor-cache": (
        "int4", {a + f"{n}_scale": ONE.astype(encoders.BF16) for a in ATTENTION for n in "qkv"}, CACHE,
    ),
    "autofp8": ("fp8-auto", {m + "input_scale": ONE.reshape(()) for m in MODULES}, ACTIVATIONS),
    "autofp8-cache": ("fp8-auto", {a + "kv_scale": ONE for a in ATTENTION}, CACHE),
    "modelopt-cache": ("fp8-auto", {a + f"{n}_proj.{n}_scale": ONE for a in ATTENTION for n in "kv"}, CACHE),
    "transformers": ("fp8-one", {m + "activation_scale": ONE.reshape(()) for m in MODULES}, ACTIVATIONS),
}  # fmt: skip


def with_tensors(source: Path, target: Path, more: Tensors, shards: int = 2) -> Path:
    tensors, config = encoders.read(source)
    encoders.write(source, target / source.name, tensors | more, shards, config)
    return target / source.name


def same(folder: Path, meant: Path, tmp_path: Path) -> dict[str, Any]:
    """The output of `folder` is that of the plain values; its manifest."""
    to_gguf(folder, tmp_path / "encoded.gguf", "f32")
    to_gguf(meant, tmp_path / "meant.gguf", "f32")
    assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes()
    manifest: dict[str, Any] = json.loads((tmp_path / "encoded.gguf.manifest.json").read_text())
    return manifest


@pytest.mark.parametrize("case", WRITERS)
def test_scales_that_are_not_of_weights_are_left_out_by_name(case: str, pair: Pair, tmp_path: Path) -> None:
    name, more, part = WRITERS[case]
    encoded, meant = pair(name)
    left_out = same(with_tensors(encoded, tmp_path, more), meant, tmp_path)["left_out"]
    assert {k: sorted(v) for k, v in left_out.items()} == {part: sorted(more)}


def biases(value: float = 0, dtype: Any = np.float16) -> Tensors:
    """For every kind of module that has none, as AutoGPTQ wrote them."""
    found = {m + "bias": np.zeros(288 if "mlp" in m else 160, dtype) for m in MODULES}
    found[MODULES[2] + "bias"][287] = value
    return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32, encoders.BF16])
def test_biases_of_zeros_change_nothing(dtype: Any, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair("gptq")
    left_out = same(with_tensors(encoded, tmp_path, biases(dtype=dtype)), meant, tmp_path)["left_out"]
    assert {k: sorted(v) for k, v in left_out.items()} == {
        "all-zero biases of modules that have none": sorted(biases())
    }


@pytest.mark.parametrize("opened", [open_folder, streamed], ids=["folder", "streamed"])
def test_a_bias_that_is_not_zero(opened: Callable[[Path], Any], pair: Pair, tmp_path: Path) -> None:
    good, bad = (with_tensors(pair("gptq")[0], tmp_path / str(v), biases(v)) for v in (0, 2**-24))
    (tmp_path / "out").mkdir()
    convert(prepare(opened(good), tmp_path / "good.gguf", "gguf", "q8_0", jobs=2))
    with pytest.raises(
        InputError, match=r"mlp\.up_proj\.bias: a bias that is not zero, and the model has none there; it is"
    ):
        convert(prepare(opened(bad), tmp_path / "out" / "m.gguf", "gguf", "q8_0", jobs=2))
    assert not list((tmp_path / "out").iterdir())


REFUSED: dict[str, tuple[str, Tensors]] = {
    "a-scale-without-a-config": ("plain", {MODULES[0] + "input_scale": ONE}),
    "a-factor-of-activations": ("fp8-tensor", {MODULES[0] + "pre_quant_scale": np.ones(160, np.float32)}),
    "an-order-of-columns": ("int4", {MODULES[0] + "weight_g_idx": np.zeros(160, np.int32)}),
    "a-scale-that-is-no-number": ("fp8-tensor", {MODULES[0] + "input_scale": np.ones(1, np.int32)}),
    "a-bias-of-another-method": ("int4", {MODULES[0] + "bias": np.zeros(160, np.float16)}),
    "a-bias-of-another-shape": ("gptq", {MODULES[0] + "bias": np.zeros((160, 1), np.float16)}),
    "a-bias-that-is-no-number": ("gptq", {MODULES[0] + "bias": np.zeros(160, np.int32)}),
    "a-bias-of-a-norm": ("gptq", {"model.norm.bias": np.zeros(160, np.float16)}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused(case: str, pair: Pair, tmp_path: Path) -> None:
    name, more = REFUSED[case]
    source = pair("int4")[1] if name == "plain" else pair(name)[0]
    folder = with_tensors(source, tmp_path, more, shards=1)
    with pytest.raises(InputError) as caught:
        prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "f32")
    (key,) = more
    assert f"{key}: expected only tensors that qwen3 knows, found one that no rule claims" in str(caught.value)
