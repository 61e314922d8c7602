"""Encode and decode rows of any number type; the types' own modules hold how."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import blocked, ggml
from .blocked import BLOCK_TYPES, BlockType
from .types import NumberType, number_type

TensorType = NumberType | BlockType


def tensor_type(name: str) -> TensorType:
    """The type called `name` as ONNX graphs hold it: blocks in arrays of their own, or plain numbers."""
    return BLOCK_TYPES[name] if name in BLOCK_TYPES else number_type(name)


def encode_rows(kind: TensorType, rows: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Encode float32 [n, k] into `out`, uint8 [n · row_bytes(k)]: the n rows of each of the type's arrays in turn.

    Raises InputError when the type cannot hold the values.
    """
    if isinstance(kind, BlockType):
        blocked.encode_rows(kind, rows, out)
    else:
        ggml.encode_rows(kind, rows, out)


def pack_integers(
    kind: TensorType,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    out: NDArray[np.uint8],
) -> None:
    """4-bit codes [n, k] → `kind`, as they are: (code - zero point) · scale, the zero point 8 where `zeros` is None.

    `scales` and `zeros`: [n, blocks of the type]; scales become float16. Raises InputError when one overflows it.
    """
    if isinstance(kind, BlockType):
        with np.errstate(over="ignore"):
            half = scales.astype(np.float16).reshape(-1)
        if kind.zero_points and zeros is None:
            zeros = np.full(scales.shape, 8, np.uint8)
        blocked.pack_rows(kind, codes.reshape(-1, kind.block), half, zeros, len(codes), out)
    else:
        ggml.pack_q4_0(codes, scales, out)
        ggml.validate_rows(kind, out)


def decode_rows(kind: TensorType, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decode what `encode_rows` wrote into `out`, float32 [n, k]."""
    if isinstance(kind, BlockType):
        blocked.decode_rows(kind, data, out)
    else:
        ggml.decode_rows(kind, data, out)
