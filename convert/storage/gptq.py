"""GPTQ, 4 bits: transposed codes with a scale and a zero point for each group of input columns.

`qweight` int32 [columns / 8, rows]: eight codes down the column, the low nibble first; `scales` [groups, rows];
`qzeros` int32 [groups, rows / 8]: zero points along the row, low nibble first, stored less one in the format `gptq`
and as they are in `gptq_v2`; `g_idx` int32 [columns], the group of each input column. A value is
(code − zero point) · scale, exactly: kernels round it to float16. Sources: AutoGPTQ's qlinear_cuda_old.py (pack and
forward), GPTQModel's quantization/config.py for the formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong
from sampan.safetensors import ITEMSIZE

from ..config import Config
from ..encoding import Buffer, Encoding, Integers, Read, Rule, Scaling, StoredTensor, Tensors
from ..quantization import LINEAR, one_of
from ._gptqmodel import check, dynamic_plain
from ._numbers import FLOATS, floats, look_up_pairs, nibbles, pairs

TABLE = pairs(np.arange(16, dtype=np.float32))
# both lists: the keys of GPTQ alone
KNOWN = ("modules_in_block_to_quantize", "is_marlin_format")
ABOUT = ("backend", "version")


def _rule(config: Config, group: Config) -> Rule:
    size = check(config, "gptq", KNOWN, ABOUT)
    config.is_default("is_marlin_format", False)
    kind = one_of(config, ("checkpoint_format", "format"), ("gptq", "gptq_v2"))
    act_order = config.flag("desc_act", False)
    scaling = Scaling(1, size, config.flag("sym", False), int(kind == "gptq"), act_order)
    return Rule(ENCODING, scaling, _covers(config))


def _covers(config: Config) -> Callable[[str], bool | None]:
    plain = dynamic_plain(config)
    head = config.flag("lm_head", False)
    lists = config.get("modules_in_block_to_quantize") or []
    inside = [f".{m}" for group in lists for m in (group if isinstance(group, list) else [group])]

    def covers(module: str) -> bool | None:
        if plain(module):
            return False
        if module == "lm_head":
            return head
        if inside:
            return module.endswith(tuple(inside))
        return True if LINEAR.fullmatch(module) else None

    return covers


def _open(name: str, tensors: Tensors, scaling: Scaling) -> StoredTensor:
    main = tensors.main(name, ENCODING.dtypes, 2)
    columns, rows = 8 * main.info.shape[0], main.info.shape[1]
    base = name.removesuffix("qweight")
    size = scaling.columns or columns
    if columns % size or rows % 8:
        found = f"{columns} columns, {rows} rows"
        raise wrong(tensors.where(name), f"columns in groups of {size} and rows in words of 8", found)
    groups, why = columns // size, f" for groups of {size}"
    parts = [
        main,
        tensors.companion(name, base + "scales", FLOATS, [(groups, rows)], why),
        tensors.companion(name, base + "qzeros", ("I32",), [(groups, rows // 8)], why),
    ]
    if scaling.act_order or base + "g_idx" in tensors.tensors:
        parts.append(tensors.companion(name, base + "g_idx", ("I32",), [(columns,)]))
    return StoredTensor(base + "weight", (rows, columns), ENCODING, tuple(parts), scaling)


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    height, columns = stored.shape
    groups, item = stored.parts[1].info.shape[0], ITEMSIZE[stored.parts[1].info.dtype]
    first, end = start // 8, -(-(start + rows) // 8)
    reads = [
        Read(0, start * 4, rows * 4, columns // 8, height * 4),
        Read(1, start * item, rows * item, groups, height * item),
        Read(2, first * 4, (end - first) * 4, groups, height // 2),
    ]
    if len(stored.parts) == 4:
        reads.append(Read(3, 0, columns * 4))
    return tuple(reads)


def _codes(stored: StoredTensor, buffers: Sequence[Buffer], rows: int) -> Buffer:
    """The packed codes of some rows, row after row: words of [columns / 8, rows] transposed."""
    words = buffers[0].view(np.uint32).reshape(-1, rows)
    return np.ascontiguousarray(words.T).view(np.uint8).reshape(-1)


def _scales(stored: StoredTensor, buffers: Sequence[Buffer], rows: int) -> NDArray[np.float32]:
    """Float32 [rows, groups]."""
    return np.ascontiguousarray(floats(stored.parts[1], buffers[1]).reshape(-1, rows).T)


def _zeros(stored: StoredTensor, buffers: Sequence[Buffer], start: int, rows: int) -> NDArray[np.uint8]:
    """Zero points, uint8 [rows, groups]; refused where runtimes or the config disagree about them."""
    groups = stored.parts[1].info.shape[0]
    stored_zeros = nibbles(buffers[2].reshape(groups, -1))[:, start % 8 : start % 8 + rows]
    where, offset = brief(stored.parts[2].info.name), stored.scaling.zero_offset
    if stored.scaling.symmetric and (stored_zeros != 8 - offset).any():
        raise wrong(where, "the zero point 8 everywhere, as sym says", int(stored_zeros[stored_zeros != 8 - offset][0]))
    if offset and (stored_zeros == 15).any():
        raise wrong(where, "zero points below 15 in the format gptq", "15, which runtimes read as 0 or as 16")
    return np.ascontiguousarray(stored_zeros.T) + np.uint8(offset)


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    rows = len(out)
    look_up_pairs(TABLE, _codes(stored, buffers, rows), out)
    scales, zeros = _scales(stored, buffers, rows), _zeros(stored, buffers, start, rows)
    index = _groups(stored, buffers)
    if stored.scaling.act_order:
        for r in range(rows):  # a row at a time: no second copy of all values
            out[r] -= zeros[r, index]
            out[r] *= scales[r, index]
        return
    grouped = out.reshape(rows, scales.shape[1], -1)
    grouped -= zeros[:, :, None]
    grouped *= scales[:, :, None]


def _groups(stored: StoredTensor, buffers: Sequence[Buffer]) -> NDArray[np.int64]:
    """The group of every column; without act-order it must count up."""
    groups, columns = stored.parts[1].info.shape[0], stored.columns
    counted = np.arange(columns) // (columns // groups)
    if len(stored.parts) < 4:
        return counted
    index = buffers[3].view(np.int32).astype(np.int64)
    where = brief(stored.parts[3].info.name)
    if index.min() < 0 or index.max() >= groups:
        raise wrong(where, f"groups from 0 to {groups - 1}", f"{index.min()} to {index.max()}")
    if not stored.scaling.act_order and (index != counted).any():
        raise wrong(where, "groups in order, since desc_act is false", "another order")
    return index


def _integers(stored: StoredTensor, buffers: Sequence[Buffer], start: int, rows: int) -> Integers:
    zeros = None if stored.scaling.symmetric else _zeros(stored, buffers, start, rows)
    return nibbles(_codes(stored, buffers, rows).reshape(rows, -1)), _scales(stored, buffers, rows), zeros


ENCODING = Encoding(
    name="gptq",
    formats=("gptq",),
    rule=_rule,
    main=".qweight",
    dtypes=("I32",),
    open=_open,
    step=8,
    zero_biases=True,
    reads=_reads,
    decode=_decode,
    integers=_integers,
)
