"""AWQ, 4 bits, the `gemm` layout: codes [columns, rows / 8] with a scale and a zero point for each group of columns.

`qweight` int32 [columns, rows / 8] and `qzeros` int32 [groups, rows / 8]: nibble i of a word, the low one first, is
row ORDER[i] of its eight; `scales` [groups, rows]. A value is (code − zero point) · scale, exactly: kernels round it
to float16. Source: AutoAWQ's awq/modules/linear/gemm.py (`from_linear`) and awq/utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong
from sampan.safetensors import ITEMSIZE

from ..config import Config
from ..encoding import Buffer, Encoding, Read, Rule, Scaling, StoredTensor, Tensors
from ..quantization import covers, only, texts
from ._numbers import FLOATS, floats

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
KNOWN = ("quant_method", "bits", "w_bit", "group_size", "q_group_size", "zero_point", "version", "backend")
# how the codes were found, and what runtimes make of them
ABOUT = ("modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config")


def _rule(config: Config, group: Config) -> Rule:
    only(config, *KNOWN, *ABOUT)
    if config.natural("bits", "w_bit") != 4:
        raise wrong(config.at("bits"), "4", config.get("bits", "w_bit"))
    version = config.get("version") or "gemm"
    if str(version).lower() != "gemm":
        raise wrong(config.at("version"), "gemm", brief(version))
    config.is_default("zero_point", True)
    size = config.get("group_size", "q_group_size")
    if type(size) is not int or not (size == -1 or 0 < size < 2**31):
        raise wrong(config.at("group_size"), "values in a group, or -1", brief(size))
    plain = texts(config, "modules_to_not_convert")  # AutoAWQ: parts of names
    scaling = Scaling(1, max(0, size), symmetric=False)
    return Rule(ENCODING, scaling, covers(lambda module: any(p in module for p in plain)))


def _open(name: str, tensors: Tensors, scaling: Scaling) -> StoredTensor:
    main = tensors.main(name, ENCODING.dtypes, 2)
    columns, rows = main.info.shape[0], 8 * main.info.shape[1]
    base = name.removesuffix("qweight")
    size = scaling.columns or columns
    if columns % size:
        raise wrong(tensors.where(name), f"columns in groups of {size}", f"{columns} columns")
    groups, why = columns // size, f" for groups of {size}"
    parts = (
        main,
        tensors.companion(name, base + "scales", FLOATS, [(groups, rows)], why),
        tensors.companion(name, base + "qzeros", ("I32",), [(groups, rows // 8)], why),
    )
    return StoredTensor(base + "weight", (rows, columns), ENCODING, parts, scaling)


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    height, columns = stored.shape
    groups, item = stored.parts[1].info.shape[0], ITEMSIZE[stored.parts[1].info.dtype]
    first, end = start // 8, -(-(start + rows) // 8)
    words = (end - first) * 4
    return (
        Read(0, first * 4, words, columns, height // 2),
        Read(1, start * item, rows * item, groups, height * item),
        Read(2, first * 4, words, groups, height // 2),
    )


def _unpack(raw: Buffer, height: int, first: int, rows: int) -> NDArray[np.uint8]:
    """Words [height, n] → codes uint8 [rows, height], from row `first` of the first word."""
    words = np.ascontiguousarray(raw.view(np.uint32).reshape(height, -1).T)
    codes = np.empty((len(words), 8, height), np.uint8)
    for nibble, row in enumerate(ORDER):
        codes[:, row] = words >> np.uint32(4 * nibble) & 15
    return codes.reshape(-1, height)[first : first + rows]


def _integers(
    stored: StoredTensor, buffers: Sequence[Buffer], start: int, rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    groups = stored.parts[1].info.shape[0]
    scales = np.ascontiguousarray(floats(stored.parts[1], buffers[1]).reshape(groups, rows).T)
    codes = _unpack(buffers[0], stored.columns, start % 8, rows)
    return codes, scales, _unpack(buffers[2], groups, start % 8, rows)


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    codes, scales, zeros = _integers(stored, buffers, start, len(out))
    out[:] = codes
    grouped = out.reshape(*scales.shape, -1)
    grouped -= zeros[:, :, None]
    grouped *= scales[:, :, None]


ENCODING = Encoding(
    name="awq",
    formats=("awq",),
    rule=_rule,
    main=".qweight",
    dtypes=("I32",),
    open=_open,
    step=8,
    reads=_reads,
    decode=_decode,
    integers=_integers,
)
