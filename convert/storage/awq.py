"""AWQ, 4 bits, the `gemm` layout: codes [columns, rows / 8] with a scale and a zero point for each group of columns.

`qweight` int32 [columns, rows / 8] and `qzeros` int32 [groups, rows / 8]: nibble i of a word, the low one first, is
row ORDER[i] of its eight; `scales` [groups, rows]. A value is (code − zero point) · scale, exactly: kernels round it
to float16. Source: AutoAWQ's awq/modules/linear/gemm.py (`from_linear`) and awq/utils/packing_utils.py. Where
`zero_point` is false the stored ones are all 8: GPTQModel's looper/awq_processor.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong
from sampan.safetensors import ITEMSIZE

from ..config import Config
from ..encoding import Buffer, Encoding, Integers, Read, Rule, Scaling, StoredTensor, Tensors
from ..patterns import skipper
from ..quantization import covers, one_of, texts
from ._gptqmodel import check, dynamic_plain
from ._numbers import FLOATS, floats

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# both lists: the keys of AWQ alone; `sym` says nothing, GPTQModel 5 wrote true beside zero points
KNOWN = ("w_bit", "q_group_size", "zero_point", "version", "backend", "modules_to_not_convert")
ABOUT = ("do_fuse", "fuse_max_seq_len", "modules_to_fuse")


def _rule(config: Config, group: Config) -> Rule:
    size = check(config, "awq", KNOWN, ABOUT)
    one_of(config, ("version", "format", "checkpoint_format"), ("gemm",))
    if config.get("backend") == "llm-awq":
        raise wrong(config.at("backend"), "a packing in the layout gemm", "llm-awq, another one")
    config.is_default("desc_act", False)
    listed = texts(config, "modules_to_not_convert")
    skipped, dynamic = skipper(listed, config.at("modules_to_not_convert")), dynamic_plain(config)
    parts = [n for n in listed if n]  # AutoAWQ: parts of names
    scaling = Scaling(1, size, symmetric=not config.flag("zero_point", True))

    def plain(module: str) -> bool:
        return any(p in module for p in parts) or skipped(module) or dynamic(module)

    return Rule(ENCODING, scaling, covers(plain))


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


def _values(
    stored: StoredTensor, buffers: Sequence[Buffer], start: int, rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Codes [rows, columns], scales and zero points [rows, groups]."""
    groups = stored.parts[1].info.shape[0]
    scales = np.ascontiguousarray(floats(stored.parts[1], buffers[1]).reshape(groups, rows).T)
    codes = _unpack(buffers[0], stored.columns, start % 8, rows)
    zeros = _unpack(buffers[2], groups, start % 8, rows)
    if stored.scaling.symmetric and (zeros != 8).any():
        where = brief(stored.parts[2].info.name)
        raise wrong(where, "the zero point 8 everywhere, as zero_point says", int(zeros[zeros != 8][0]))
    return codes, scales, zeros


def _integers(stored: StoredTensor, buffers: Sequence[Buffer], start: int, rows: int) -> Integers:
    codes, scales, zeros = _values(stored, buffers, start, rows)
    return codes, scales, None if stored.scaling.symmetric else zeros


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    codes, scales, zeros = _values(stored, buffers, start, len(out))
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
