"""Encode and decode rows of any number type: each has `encode`, `decode` and `pack` in its own module."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .blocked import BLOCK_TYPES, BlockType
from .channel import CHANNEL_TYPES, ChannelType
from .types import NumberType, number_type

TensorType = NumberType | BlockType | ChannelType


def tensor_type(name: str) -> TensorType:
    """The type called `name` as ONNX graphs hold it: integers in arrays of their own, or plain numbers."""
    return BLOCK_TYPES.get(name) or CHANNEL_TYPES.get(name) or number_type(name)


def encode_rows(
    kind: TensorType,
    rows: NDArray[np.float32],
    out: NDArray[np.uint8],
    weights: NDArray[np.float32] | None = None,
) -> None:
    """Encode float32 [n, k] into `out`, uint8 [n · row_bytes(k)]: the n rows of each of the type's arrays in turn.

    `weights`, float32 [k]: how much the squared error of each column counts; None: all alike. Raises InputError when
    the type cannot hold the values.
    """
    kind.encode(rows, out, weights)


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
    kind.pack(codes, scales, zeros, out)


def decode_rows(kind: TensorType, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decode what `encode_rows` wrote into `out`, float32 [n, k]."""
    kind.decode(data, out)
