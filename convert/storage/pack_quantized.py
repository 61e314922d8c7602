"""compressed-tensors `pack-quantized`: 4-bit integers, eight to an int32, with a scale for a group along the row.

`weight_packed` int32 [rows, columns / 8]: nibbles along the row, the low one first, each the value + 8.
`weight_scale` [rows, groups]; `weight_shape` [2] repeats the shape; without symmetry `weight_zero_point` int32
[rows / 8, groups] holds the zero points + 8, packed down the column. A value is (code − zero point) · scale,
exactly: the package rounds it to the scale's dtype. Source: compressors/pack_quantized of compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong
from sampan.safetensors import ITEMSIZE

from ..config import Config
from ..encoding import Buffer, Encoding, Integers, Read, Rule, Scaling, StoredTensor, Tensors
from ._compressed import read_group
from ._numbers import FLOATS, floats, look_up_pairs, nibbles, pairs

SYMMETRIC, PLAIN = pairs(np.arange(16, dtype=np.float32) - 8), pairs(np.arange(16, dtype=np.float32))
INTEGERS = ("I64", "I32")


def _rule(config: Config, group: Config) -> Rule:
    g = read_group(config, group)
    if (g.bits, g.type) != (4, "int"):
        raise wrong(g.weights.where, "4-bit integers", f"{g.bits}-bit {brief(g.type)}")
    if g.strategy not in ("group", "channel") or (g.strategy == "group") != (g.group_size > 0):
        found = f"{brief(g.strategy)} with group_size {g.group_size}"
        raise wrong(g.weights.at("strategy"), "group with a group_size, or channel", found)
    return Rule(ENCODING, Scaling(1, max(0, g.group_size), g.symmetric), g.covers)


def _open(name: str, tensors: Tensors, scaling: Scaling) -> StoredTensor:
    main = tensors.main(name, ENCODING.dtypes, 2)
    rows, columns = main.info.shape[0], 8 * main.info.shape[1]
    base = name.removesuffix("_packed")
    size = scaling.columns or columns
    if columns % size:
        raise wrong(tensors.where(name), f"rows of a multiple of {size} values, as group_size says", columns)
    why = f" for groups of {size}"
    parts = [
        main,
        tensors.companion(name, base + "_scale", FLOATS, [(rows, columns // size)], why),
        tensors.companion(name, base + "_shape", INTEGERS, [(2,)]),
    ]
    if not scaling.symmetric:
        shape = (-(-rows // 8), columns // size)
        parts.append(tensors.companion(name, base + "_zero_point", ("I32",), [shape], why))
    return StoredTensor(base, (rows, columns), ENCODING, tuple(parts), scaling)


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    groups = stored.columns // (stored.scaling.columns or stored.columns)
    codes, scale = stored.columns // 2, groups * ITEMSIZE[stored.parts[1].info.dtype]
    reads = [Read(0, start * codes, rows * codes), Read(1, start * scale, rows * scale)]
    reads.append(Read(2, 0, stored.parts[2].info.nbytes))
    if not stored.scaling.symmetric:
        first, end = start // 8, -(-(start + rows) // 8)
        reads.append(Read(3, first * groups * 4, (end - first) * groups * 4))
    return tuple(reads)


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    shape = tuple(buffers[2].view(np.int64 if stored.parts[2].info.dtype == "I64" else np.int32).tolist())
    if shape != stored.shape:
        raise wrong(brief(stored.parts[2].info.name), list(stored.shape), list(shape))
    look_up_pairs(SYMMETRIC if stored.scaling.symmetric else PLAIN, buffers[0], out)
    scales = floats(stored.parts[1], buffers[1]).reshape(len(out), -1)
    grouped = out.reshape(len(out), scales.shape[1], -1)
    if not stored.scaling.symmetric:
        grouped -= _zeros(buffers[3], scales.shape[1], start, len(out))[:, :, None]
    grouped *= scales[:, :, None]


def _zeros(raw: Buffer, groups: int, start: int, rows: int) -> NDArray[np.uint8]:
    """Words [rows / 8, groups] → zero points uint8 [rows, groups]."""
    codes = nibbles(raw.reshape(-1, groups, 4)).transpose(0, 2, 1).reshape(-1, groups)
    return codes[start % 8 : start % 8 + rows]


def _integers(stored: StoredTensor, buffers: Sequence[Buffer], start: int, rows: int) -> Integers:
    scales = floats(stored.parts[1], buffers[1]).reshape(rows, -1)
    zeros = None if stored.scaling.symmetric else _zeros(buffers[3], scales.shape[1], start, rows)
    return nibbles(buffers[0].reshape(rows, -1)), scales, zeros


ENCODING = Encoding(
    name="pack_quantized",
    formats=("compressed-tensors/pack-quantized",),
    rule=_rule,
    main=".weight_packed",
    dtypes=("I32",),
    open=_open,
    reads=_reads,
    decode=_decode,
    integers=_integers,
)
