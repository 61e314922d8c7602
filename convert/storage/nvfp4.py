"""NVFP4: E2M1 floats, two to a byte, with an E4M3 scale for each 16 along the row and one float32 scale for all.

Codes uint8 [rows, columns / 2], the low nibble first; `weight_scale` E4M3 [rows, columns / 16]. modelopt writes the
codes as `weight` and multiplies by `weight_scale_2` (torch/quantization/qtensor/nvfp4_tensor.py, `dequantize`);
compressed-tensors writes `weight_packed` and divides by `weight_global_scale` (compressors/nvfp4 and `_dequantize` in
quantization/lifecycle/forward_helpers.py). A value is code · (scale · that scale), in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong

from ..config import Config
from ..encoding import Buffer, Encoding, Read, Rule, Scaling, StoredTensor, Tensors
from ._compressed import read_group
from ._modelopt import read_modelopt
from ._numbers import E2M1_PAIRS, E4M3, look_up, look_up_pairs

GROUP = 16
MULTIPLIED, DIVIDED = "_scale_2", "_global_scale"


def _rule(config: Config, group: Config) -> Rule:
    if config.get("quant_method") == "modelopt":
        return Rule(ENCODING, Scaling(1, GROUP, suffix=MULTIPLIED), read_modelopt(config, 4, GROUP))
    g = read_group(config, group)
    if (g.bits, g.type, g.symmetric, g.strategy, g.group_size) != (4, "float", True, "tensor_group", GROUP):
        found = f"{g.bits}-bit {brief(g.type)}, {brief(g.strategy)} of {g.group_size}"
        raise wrong(g.weights.where, f"symmetric 4-bit floats, tensor_group of {GROUP}", found)
    g.weights.is_default("scale_dtype", "torch.float8_e4m3fn")
    return Rule(ENCODING, Scaling(1, GROUP, suffix=DIVIDED), g.covers)


def _open(name: str, tensors: Tensors, scaling: Scaling) -> StoredTensor:
    main = tensors.main(name, ENCODING.dtypes, 2)
    base = name.removesuffix("_packed") if scaling.suffix == DIVIDED else name
    rows, columns = main.info.shape[0], 2 * main.info.shape[1]
    if columns % GROUP:
        raise wrong(tensors.where(name), f"rows of a multiple of {GROUP} values", columns)
    scale = tensors.companion(
        name, base + "_scale", ("F8_E4M3",), [(rows, columns // GROUP)], f" for groups of {GROUP}"
    )
    one = tensors.companion(name, base + scaling.suffix, ("F32",), [(1,), ()])
    return StoredTensor(base, (rows, columns), ENCODING, (main, scale, one), scaling)


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    codes, scale = stored.columns // 2, stored.columns // GROUP
    return Read(0, start * codes, rows * codes), Read(1, start * scale, rows * scale), Read(2, 0, 4)


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    look_up_pairs(E2M1_PAIRS, buffers[0], out)
    scales = np.empty(buffers[1].size, np.float32)
    look_up(E4M3, buffers[1], scales)
    one = buffers[2].view(np.float32)
    with np.errstate(all="ignore"):  # a zero or NaN shows as values that are not finite, and is refused with its row
        if stored.scaling.suffix == MULTIPLIED:
            scales *= one
        else:
            scales /= one
        grouped = out.reshape(-1, GROUP)
        grouped *= scales[:, None]


ENCODING = Encoding(
    name="nvfp4",
    formats=("compressed-tensors/nvfp4-pack-quantized", "modelopt/nvfp4"),
    rule=_rule,
    main="",
    dtypes=("U8",),
    open=_open,
    reads=_reads,
    decode=_decode,
)
