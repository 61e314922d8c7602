"""Re-encode a plain checkpoint as the quantised ones that people publish, and keep what the codes mean.

Written from the formats' descriptions (docs/decisions.md names them), not from the decoders: loops over blocks,
integers written out bit by bit. Each function takes float32 [rows, columns] and returns the tensors of a module by
suffix, and the values they stand for as float32.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

Array = np.ndarray[Any, Any]
Encoded = tuple[dict[str, Array], Array]
BF16 = ml_dtypes.bfloat16
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def fp8_block(w: Array, block: int = 128, scale_dtype: Any = np.float32) -> Encoded:
    """E4M3 in blocks of 128×128; the scale brings a block's largest value to 448."""
    rows, columns = w.shape
    scales = np.zeros((-(-rows // block), -(-columns // block)), scale_dtype)
    codes, values = np.zeros(w.shape, ml_dtypes.float8_e4m3fn), np.zeros(w.shape, np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scales[i, j] = np.abs(w[at]).max() / 448
            codes[at] = (w[at] / np.float32(scales[i, j])).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
            values[at] = codes[at].astype(np.float32) * np.float32(scales[i, j])
    return {"weight": codes, "weight_scale_inv": scales}, values


def fp8_channel(w: Array) -> Encoded:
    """E4M3 with a bfloat16 scale for each row."""
    scales = (np.abs(w).max(axis=1, keepdims=True) / 448).astype(BF16)
    codes = (w / scales.astype(np.float32)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, codes.astype(np.float32) * scales.astype(np.float32)


def fp8_tensor(w: Array) -> Encoded:
    """E4M3 with one float32 scale."""
    scale = np.array([np.abs(w).max() / 448], np.float32)
    codes = (w / scale).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.astype(np.float32) * scale


def fp8_one(w: Array) -> Encoded:
    """E4M3 with one scale, under the name that transformers gives it without blocks."""
    tensors, values = fp8_tensor(w)
    return {"weight": tensors["weight"], "weight_scale_inv": tensors["weight_scale"].reshape(())}, values


def _words(codes: Array) -> Array:
    """Codes [n, 8] of four bits → int32 [n], the first in the lowest bits."""
    words = np.zeros(len(codes), np.uint32)
    for i in range(8):
        words |= codes[:, i].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def _symmetric(w: Array, group: int, scale_dtype: Any) -> tuple[Array, Array, Array]:
    """Codes 0 to 15 around 8, scales [rows, groups], values."""
    blocks = w.reshape(len(w), -1, group)
    scales = (np.abs(blocks).max(axis=2) / 7.5).astype(scale_dtype)
    step = scales.astype(np.float32)[:, :, None]
    codes = np.rint(blocks / step).clip(-8, 7) + 0.0  # no minus zero: integers have none
    return (codes + 8).astype(np.uint8).reshape(w.shape), scales, (codes * step).reshape(w.shape)


def _asymmetric(w: Array, group: int, scale_dtype: Any) -> tuple[Array, Array, Array, Array]:
    """Codes 0 to 15, scales and zero points [rows, groups], values."""
    blocks = w.reshape(len(w), -1, group)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    scales = ((high - low) / 15).astype(scale_dtype)
    step = scales.astype(np.float32)[:, :, None]
    zeros = np.rint(-low / step[:, :, 0]).clip(1, 15)
    codes = (np.rint(blocks / step) + zeros[:, :, None]).clip(0, 15)
    values = (codes - zeros[:, :, None]) * step
    return codes.astype(np.uint8).reshape(w.shape), scales, zeros.astype(np.uint8), values.reshape(w.shape)


def int4(w: Array, group: int = 32) -> Encoded:
    """compressed-tensors pack-quantized, symmetric."""
    codes, scales, values = _symmetric(w, group, BF16)
    packed = _words(codes.reshape(-1, 8)).reshape(len(w), -1)
    return {"weight_packed": packed, "weight_scale": scales, "weight_shape": np.array(w.shape, np.int64)}, values


def int4_zeros(w: Array, group: int = 32) -> Encoded:
    """compressed-tensors pack-quantized with zero points, packed down the columns."""
    codes, scales, zeros, values = _asymmetric(w, group, BF16)
    padded = np.zeros((-(-len(w) // 8) * 8, zeros.shape[1]), np.uint8)
    padded[: len(w)] = zeros
    down = np.stack([_words(padded[i : i + 8].T) for i in range(0, len(padded), 8)])
    tensors = {
        "weight_packed": _words(codes.reshape(-1, 8)).reshape(len(w), -1), "weight_scale": scales,
        "weight_shape": np.array(w.shape, np.int64), "weight_zero_point": down,
    }  # fmt: skip
    return tensors, values


def mxfp4(w: Array) -> Encoded:
    """E2M1 floats with a power of two for each 32."""
    blocks = w.reshape(-1, 32)
    exponents = np.floor(np.log2(np.abs(blocks).max(axis=1))) - 2
    step = np.exp2(exponents).astype(np.float32)[:, None]
    nearest = np.abs(np.abs(blocks / step)[:, :, None] - np.array(E2M1)).argmin(axis=2)
    values = np.where(blocks < 0, -1, 1) * np.array(E2M1, np.float32)[nearest] * step
    codes = (nearest + np.where(blocks < 0, 8, 0)).astype(np.uint8).reshape(len(w), -1)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    scales = (exponents + 127).astype(np.uint8).reshape(len(w), -1)
    return {"weight_packed": packed, "weight_scale": scales}, values.astype(np.float32).reshape(w.shape)


def nvfp4(w: Array, modelopt: bool = False) -> Encoded:
    """E2M1 floats with an E4M3 scale for each 16; a float32 one brings the largest of those to 448."""
    blocks = w.reshape(-1, 16)
    one = np.float32(np.abs(w).max() / (448 * 6))  # what compressed-tensors divides by is stored the other way up
    stored = np.array(one) if modelopt else np.array([1 / one], np.float32)
    scales = (np.abs(blocks).max(axis=1) / (6 * one)).astype(ml_dtypes.float8_e4m3fn)
    step = scales.astype(np.float32) * stored if modelopt else scales.astype(np.float32) / stored
    nearest = np.abs(np.abs(blocks / step[:, None])[:, :, None] - np.array(E2M1)).argmin(axis=2)
    values = np.where(blocks < 0, -1, 1).astype(np.float32) * np.array(E2M1, np.float32)[nearest] * step[:, None]
    codes = (nearest + np.where(blocks < 0, 8, 0)).astype(np.uint8).reshape(len(w), -1)
    names = ("weight", "weight_scale", "weight_scale_2") if modelopt else (
        "weight_packed", "weight_scale", "weight_global_scale")  # fmt: skip
    parts = codes[:, 0::2] | codes[:, 1::2] << 4, scales.reshape(len(w), -1), stored
    return dict(zip(names, parts, strict=True)), values.reshape(w.shape)


def fp8_scalar(w: Array) -> Encoded:
    """modelopt's FP8: the scale has no dimensions."""
    tensors, values = fp8_tensor(w)
    return tensors | {"weight_scale": tensors["weight_scale"].reshape(())}, values


def gptq(w: Array, group: int = 32, sym: bool = False, act_order: bool = False, v1: bool = True) -> Encoded:
    """GPTQ: everything transposed; with act-order the columns of a group lie scattered."""
    columns = w.shape[1]
    order = np.random.default_rng(3).permutation(columns) if act_order else np.arange(columns)
    g_idx = np.empty(columns, np.int32)
    g_idx[order] = np.arange(columns) // group
    if sym:
        codes, scales, grouped = _symmetric(w[:, order], group, np.float16)
        zeros = np.full(scales.shape, 8, np.uint8)
    else:
        codes, scales, zeros, grouped = _asymmetric(w[:, order], group, np.float16)
    back = np.argsort(order)
    down = codes[:, back].T
    tensors = {
        "qweight": np.stack([_words(down[i : i + 8].T) for i in range(0, columns, 8)]),
        "qzeros": _words((zeros - v1).T.reshape(-1, 8)).reshape(zeros.shape[1], -1),
        "scales": np.ascontiguousarray(scales.T), "g_idx": g_idx,
    }  # fmt: skip
    return tensors, grouped[:, back]


def awq(w: Array, group: int = 32, sym: bool = False) -> Encoded:
    """AWQ gemm: input columns down, eight outputs to a word in the order 0 2 4 6 1 3 5 7."""
    if sym:
        codes, scales, values = _symmetric(w, group, np.float16)
        zeros = np.full(scales.shape, 8, np.uint8)
    else:
        codes, scales, zeros, values = _asymmetric(w, group, np.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        "qweight": _words(codes.T.reshape(-1, 8)[:, order]).reshape(w.shape[1], -1),
        "qzeros": _words(zeros.T.reshape(-1, 8)[:, order]).reshape(zeros.shape[1], -1),
        "scales": np.ascontiguousarray(scales.T),
    }
    return tensors, values


def compressed(format_: str, ignore: tuple[str, ...] = ("lm_head",), **weights: Any) -> dict[str, Any]:
    """A quantization_config as compressed-tensors writes it."""
    weights = {"dynamic": False, "observer": "minmax", "num_bits": 4, "type": "int", "symmetric": True} | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": format_, "config_groups": {"group_0": group},
        "ignore": list(ignore), "quantization_status": "compressed", "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }  # fmt: skip


GPTQ = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, "lm_head": False,
    "checkpoint_format": "gptq", "damp_percent": 0.01, "true_sequential": True, "static_groups": False,
}  # fmt: skip
AWQ = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": None,
}  # fmt: skip
# what GPTQModel 7.3 writes, and 5.6 beside it where that differs (to_dict in its quantization/config.py)
META = {
    "quantizer": ["gptqmodel:7.3.4"], "uri": "https://example.invalid", "fallback": {"strategy": "rtn"},
    "offload_to_disk": True, "pack_impl": "cpu", "gc_mode": "interval", "mse": 0.0, "act_group_aware": True,
    "hessian": {"chunk_size": None, "staging_dtype": "float32"}, "moe_vram_strategy": "exclusive",
}  # fmt: skip
GPTQMODEL_7 = {
    "bits": 4, "group_size": 32, "desc_act": False, "lm_head": False, "method": "gptq", "quant_method": "gptq",
    "format": "gptq", "checkpoint_format": "gptq", "pack_dtype": "int32", "meta": META, "sym": True,
}  # fmt: skip
GPTQMODEL_5 = {k: v for k, v in GPTQMODEL_7.items() if k != "method"} | {"pack_impl": "cpu"}
GPTQMODEL_7_AWQ = {k: v for k, v in GPTQMODEL_7.items() if k != "sym"} | {
    "method": "awq", "quant_method": "awq", "format": "gemm", "checkpoint_format": "gemm", "version": "gemm",
    "zero_point": False,
}  # fmt: skip
GPTQMODEL_5_AWQ = {k: v for k, v in GPTQMODEL_7_AWQ.items() if k != "method"} | {"sym": True, "zero_point": True}

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
AUTOFP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


def modelopt(algorithm: str, **weights: Any) -> dict[str, Any]:
    """A quantization_config as modelopt writes it (convert_hf_quant_config_format)."""
    weights = {"dynamic": False, "type": "float", **weights}
    return {
        "config_groups": {"group_0": {"input_activations": weights, "weights": weights, "targets": ["Linear"]}},
        "ignore": ["lm_head", "model.layers.7*"], "quant_algo": algorithm, "quant_method": "modelopt",
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": {"name": "modelopt", "version": "0.39.0"},
    }  # fmt: skip


GROUP = {"strategy": "group", "group_size": 32}
FLOAT8 = {"num_bits": 8, "type": "float"}
TWO_GROUPS = compressed("pack-quantized", **GROUP)
TWO_GROUPS["config_groups"] |= {
    "group_0": TWO_GROUPS["config_groups"]["group_0"] | {"targets": [r"re:.*(q|k|v|o|gate|up)_proj$"]},
    "group_1": compressed("", strategy="group", group_size=96)["config_groups"]["group_0"]
    | {"targets": [r"re:.*down_proj"]},
}
ENCODERS: dict[str, tuple[Callable[[Array], Encoded], dict[str, Any]]] = {
    "fp8-block": (fp8_block, FP8),
    "fp8-block-bf16": (lambda w: fp8_block(w, scale_dtype=BF16), FP8),
    "fp8-channel": (fp8_channel, compressed("float-quantized", strategy="channel", **FLOAT8)),
    "fp8-tensor": (fp8_tensor, compressed("float-quantized", strategy="tensor", **FLOAT8)),
    "fp8-auto": (fp8_tensor, AUTOFP8),
    "fp8-one": (fp8_one, FP8 | {"weight_block_size": None, "activation_scheme": "static"}),
    "int4": (int4, compressed("pack-quantized", **GROUP)),
    "int4-two-groups": (lambda w: int4(w, 96 if w.shape[1] == 288 else 32), TWO_GROUPS),
    "int4-channel": (lambda w: int4(w, w.shape[1]), compressed("pack-quantized", strategy="channel", group_size=-1)),
    "int4-zeros": (int4_zeros, compressed("pack-quantized", **GROUP | {"symmetric": False})),
    "mxfp4": (mxfp4, compressed("mxfp4-pack-quantized", **GROUP | {"type": "float", "scale_dtype": "torch.uint8"})),
    "nvfp4": (
        nvfp4,
        compressed(
            "nvfp4-pack-quantized",
            type="float",
            strategy="tensor_group",
            group_size=16,
            scale_dtype="torch.float8_e4m3fn",
        ),
    ),
    "nvfp4-modelopt": (lambda w: nvfp4(w, modelopt=True), modelopt("NVFP4", num_bits=4, group_size=16)),
    "fp8-modelopt": (fp8_scalar, modelopt("FP8", num_bits=8)),
    "gptq": (gptq, GPTQ),
    "gptq-sym": (lambda w: gptq(w, sym=True), GPTQ | {"sym": True}),
    "gptq-v2": (lambda w: gptq(w, v1=False), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq-act-order": (lambda w: gptq(w, act_order=True), GPTQ | {"desc_act": True}),
    "awq": (awq, AWQ),
    "awq-sym": (lambda w: awq(w, sym=True), GPTQMODEL_7_AWQ),
}

TINY = "qwen3-odd-blocks"  # of tiny.py
LINEAR = re.compile(r"model\.layers\.\d+\..*(_proj(_with_mqa|_qkvz?|_z)?|\.w[123])\.weight")


def encode(
    source: Path, folder: Path, name: str, shards: int = 2, config: dict[str, Any] | None = None
) -> tuple[Path, Path]:
    """Write `source` as the checkpoint of encoding `name`, and one of float32 with the same values.

    With two shards, the codes lie in one and everything else in the other.
    """
    encoder, settings = ENCODERS[name]
    encoded: dict[str, Array] = {}
    values: dict[str, Array] = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        if LINEAR.fullmatch(key):
            parts, meant = encoder(tensor.astype(np.float32))
            base = key.removesuffix("weight")
            encoded |= {base + suffix: part for suffix, part in parts.items()}
            values[key] = np.ascontiguousarray(meant, np.float32)
        else:
            encoded[key] = tensor
            values[key] = tensor.astype(np.float32)
    write(source, folder / "encoded" / source.name, encoded, shards, settings if config is None else config)
    write(source, folder / "meant" / source.name, values, 1, None)
    return folder / "encoded" / source.name, folder / "meant" / source.name


def read(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """All tensors of a checkpoint (safetensors' own reader does not know FP8 in numpy) and its quantization_config."""
    dtypes = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "BF16": BF16, "F16": "<f2", "F32": "<f4", "U8": "u1", "I32": "<i4"}
    dtypes |= {"I64": "<i8"}
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        for name, info in header.items():
            begin, end = info["data_offsets"]
            data = np.frombuffer(raw[start + begin : start + end], dtypes[info["dtype"]])
            tensors[name] = data.reshape(info["shape"]).copy()
    return tensors, json.loads((folder / "config.json").read_text()).get("quantization_config", {})


def write(source: Path, folder: Path, tensors: dict[str, Array], shards: int, config: dict[str, Any] | None) -> None:
    """A checkpoint of `tensors` with the small files of `source`."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".index.json")):
            shutil.copy(file, folder)
    values = json.loads((folder / "config.json").read_text())
    values.pop("quantization_config", None)
    values |= {"quantization_config": config} if config else {}
    values["dtype"] = "bfloat16" if config else "float32"
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    main = [k for k, v in tensors.items() if k.endswith(("weight_packed", "qweight")) or v.dtype.itemsize == 1]
    files = {"model-00001-of-00002.safetensors": main, "model-00002-of-00002.safetensors": set(tensors) - set(main)}
    for file, names in files.items():
        save_file({k: tensors[k] for k in names}, folder / file)
    index = {"metadata": {}, "weight_map": {k: file for file, names in files.items() for k in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
