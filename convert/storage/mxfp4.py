"""compressed-tensors `mxfp4-pack-quantized`: E2M1 floats, two to a byte, with a power of two for each 32.

`weight_packed` uint8 [rows, columns / 2], the low nibble first; `weight_scale` uint8 [rows, columns / 32], E8M0:
2^(byte − 127), 255 is NaN. Sources: OCP Microscaling Formats v1.0, compressors/mxfp4, compressors/mx_utils.py and
compressors/nvfp4/helpers.py of compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong

from ..config import Config
from ..encoding import Buffer, Encoding, Read, Rule, Scaling, StoredTensor, Tensors
from ._compressed import read_group
from ._numbers import E2M1_PAIRS, look_up_pairs, nibbles

GROUP = 32
with np.errstate(over="ignore"):
    SCALES = np.ldexp(np.float32(1), np.arange(256) - 127).astype(np.float32)
SCALES[255] = np.nan


def _rule(config: Config, group: Config) -> Rule:
    g = read_group(config, group)
    if (g.bits, g.type, g.symmetric, g.strategy, g.group_size) != (4, "float", True, "group", GROUP):
        found = f"{g.bits}-bit {brief(g.type)}, {brief(g.strategy)} of {g.group_size}"
        raise wrong(g.weights.where, f"symmetric 4-bit floats in groups of {GROUP}", found)
    return Rule(ENCODING, Scaling(1, GROUP), g.covers)


def _open(name: str, tensors: Tensors, scaling: Scaling) -> StoredTensor:
    main = tensors.main(name, ENCODING.dtypes, 2)
    rows, columns = main.info.shape[0], 2 * main.info.shape[1]
    if columns % GROUP:
        raise wrong(tensors.where(name), f"rows of a multiple of {GROUP} values", columns)
    base = name.removesuffix("_packed")
    dtypes = ("U8", "F8_E8M0")
    scale = tensors.companion(name, base + "_scale", dtypes, [(rows, columns // GROUP)], f" for groups of {GROUP}")
    return StoredTensor(base, (rows, columns), ENCODING, (main, scale), scaling)


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    codes, scale = stored.columns // 2, stored.columns // GROUP
    return Read(0, start * codes, rows * codes), Read(1, start * scale, rows * scale)


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    look_up_pairs(E2M1_PAIRS, buffers[0], out)
    grouped = out.reshape(-1, GROUP)
    grouped *= SCALES[buffers[1]][:, None]


def _repack(stored: StoredTensor, buffers: Sequence[Buffer], start: int, rows: int, out: Buffer) -> None:
    """`block_mxfp4` in ggml-common.h: the scale's byte, then value j low and value j + 16 high in byte j."""
    blocks = out.reshape(-1, 1 + GROUP // 2)
    blocks[:, 0] = buffers[1]
    halves = nibbles(buffers[0]).reshape(-1, 2, GROUP // 2)
    blocks[:, 1:] = halves[:, 0] | halves[:, 1] << 4


ENCODING = Encoding(
    name="mxfp4",
    formats=("compressed-tensors/mxfp4-pack-quantized",),
    rule=_rule,
    main=".weight_packed",
    dtypes=("U8",),
    open=_open,
    reads=_reads,
    decode=_decode,
    repack={"mxfp4": _repack},
)
