"""FP8 (E4M3) weights with float scales: blocks of 128×128, one per row, or one for all.

Block scales are `weight_scale_inv` (DeepSeek-V3, Kimi K2, Qwen3-FP8), multiplied in spite of the name:
transformers' integrations/finegrained_fp8.py, `weight_dequant` in DeepSeek-V3's inference/kernel.py. The last
block of a row or column may be cut. compressed-tensors writes `weight_scale` ([rows, 1], [1] or blocks):
compressors/naive_quantized and `_process_block` in quantization/lifecycle/forward_helpers.py. AutoFP8 and vLLM's
`fp8` without blocks, modelopt's FP8: one `weight_scale` for a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong
from sampan.safetensors import ITEMSIZE

from ..config import Config
from ..encoding import Buffer, Encoding, Read, Rule, Scaling, StoredTensor, Tensors
from ..patterns import skipper
from ..quantization import covers, only, texts
from ._compressed import Group, read_group
from ._modelopt import read_modelopt
from ._numbers import E4M3, FLOATS, floats, look_up

BLOCK = (128, 128)  # transformers' FineGrainedFP8Config
# what the numbers depend on
KNOWN = (
    "quant_method", "fmt", "scale_fmt", "weight_block_size", "modules_to_not_convert", "ignored_layers", "expert_dtype",
)  # fmt: skip
# numbers of activations and of the cache, and what readers make of the weights
ABOUT = ("activation_scheme", "kv_cache_scheme", "kv_cache_quant_targets", "modules_to_convert", "dequantize")


def _rule(config: Config, group: Config) -> Rule:
    if config.get("quant_method") == "compressed-tensors":
        return _compressed(read_group(config, group))
    if config.get("quant_method") == "modelopt":
        return Rule(ENCODING, Scaling(0, 0, suffix="_scale"), read_modelopt(config, 8, None))
    only(config, *KNOWN, *ABOUT)
    config.is_default("fmt", "e4m3", "float8_e4m3fn")  # MiniMax's name of the same
    config.is_default("scale_fmt", "float", "ue8m0")  # ue8m0: float32 scales that are powers of two
    config.is_default("expert_dtype", "fp8")
    key = "modules_to_not_convert" if config.get("modules_to_not_convert") is not None else "ignored_layers"
    plain = covers(skipper(texts(config, key), config.at(key)))
    if "weight_block_size" not in config.values:  # DeepSeek's blocks, or AutoFP8's one scale: the tensors tell
        return Rule(ENCODING, Scaling(*BLOCK), plain)
    if config.values["weight_block_size"] is None:
        return Rule(ENCODING, Scaling(0, 0, suffix="_scale_inv"), plain)
    rows, columns = _check_block(config.at("weight_block_size"), config.get("weight_block_size"))
    return Rule(ENCODING, Scaling(rows, columns, suffix="_scale_inv"), plain)


def _compressed(g: Group) -> Rule:
    where = g.weights.where
    if (g.bits, g.type, g.symmetric) != (8, "float", True):
        raise wrong(where, "symmetric 8-bit floats", f"{g.bits}-bit {brief(g.type)}")
    rows, columns = 1, 0
    if g.strategy == "block":
        rows, columns = _check_block(g.weights.at("block_structure"), g.weights.get("block_structure"))
    elif g.strategy == "tensor":
        rows = 0
    elif g.strategy != "channel":
        raise wrong(g.weights.at("strategy"), "block, channel or tensor", brief(g.strategy))
    return Rule(ENCODING, Scaling(rows, columns, suffix="_scale"), g.covers)


def _check_block(where: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and 0 < v < 2**31 for v in value):
        raise wrong(where, "rows and columns of a block", brief(value))
    return value[0], value[1]


def _open(name: str, tensors: Tensors, scaling: Scaling) -> StoredTensor:
    info = tensors.tensors[name][1]
    if not scaling.suffix:
        one = name + "_scale" in tensors.tensors and name + "_scale_inv" not in tensors.tensors
        scaling = Scaling(0, 0, suffix="_scale") if one else replace(scaling, suffix="_scale_inv")
    main = tensors.main(name, ENCODING.dtypes, 3 if len(info.shape) == 3 else 2)
    *lead, rows, columns = info.shape
    if scaling.rows == 0:
        shapes: list[tuple[int, ...]] = [(1,), (), (1, 1)]
    elif scaling.columns == 0:
        shapes = [(*lead, rows, 1), (*lead, rows)]
    else:
        shapes = [(*lead, -(-rows // scaling.rows), -(-columns // scaling.columns))]
    scale = tensors.companion(name, name + scaling.suffix, FLOATS, shapes, _why(scaling))
    return StoredTensor(name, info.shape, ENCODING, (main, scale), scaling)


def _why(scaling: Scaling) -> str:
    return f" for blocks of {scaling.rows}×{scaling.columns}" if scaling.rows and scaling.columns else ""


def _scale_rows(stored: StoredTensor, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of the scale tensor, seen as a matrix, for rows of the weight."""
    if not stored.scaling.rows:
        return np.zeros_like(rows)
    height = stored.shape[-2]  # of one expert: blocks do not cross experts
    return rows // height * -(-height // stored.scaling.rows) + rows % height // stored.scaling.rows


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    first, last = _scale_rows(stored, np.array([start, start + rows - 1])).tolist()
    scale = stored.parts[1].info
    width = _width(stored) * ITEMSIZE[scale.dtype]
    columns = stored.columns
    return Read(0, start * columns, rows * columns), Read(1, first * width, (last - first + 1) * width)


def _width(stored: StoredTensor) -> int:
    """Scales in a row."""
    return -(-stored.columns // stored.scaling.columns) if stored.scaling.columns else 1


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    look_up(E4M3, buffers[0], out.reshape(-1))
    scales = floats(stored.parts[1], buffers[1]).reshape(-1, _width(stored))
    index = _scale_rows(stored, np.arange(start, start + len(out)))
    index -= index[0]
    if stored.scaling.columns == 0:
        out *= scales[index]
        return
    ends = [*np.flatnonzero(np.diff(index)) + 1, len(out)]
    begin = 0
    for end in map(int, ends):
        out[begin:end] *= np.repeat(scales[index[begin]], stored.scaling.columns)[: stored.columns]
        begin = end


ENCODING = Encoding(
    name="fp8",
    formats=("fp8", "compressed-tensors/float-quantized", "compressed-tensors/naive-quantized", "modelopt/fp8"),
    rule=_rule,
    main="",
    dtypes=("F8_E4M3",),
    open=_open,
    reads=_reads,
    decode=_decode,
)
