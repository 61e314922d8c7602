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


def decode_rows(kind: TensorType, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decode what `encode_rows` wrote into `out`, float32 [n, k]."""
    if isinstance(kind, BlockType):
        blocked.decode_rows(kind, data, out)
    else:
        ggml.decode_rows(kind, data, out)
