"""Plain numbers: bfloat16, float16 and float32 tensors, row after row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampan.quantize.ggml import decode_rows
from sampan.quantize.types import number_type
from sampan.safetensors import ITEMSIZE

from ..encoding import Buffer, Encoding, Read, StoredTensor


def _reads(stored: StoredTensor, start: int, rows: int) -> tuple[Read, ...]:
    row = stored.columns * ITEMSIZE[stored.main.info.dtype]
    return (Read(0, start * row, rows * row),)


def _decode(stored: StoredTensor, buffers: Sequence[Buffer], start: int, out: NDArray[np.float32]) -> None:
    decode_rows(number_type(stored.main.info.dtype.lower()), buffers[0], out)


ENCODING = Encoding(name="plain", dtypes=("BF16", "F16", "F32"), reads=_reads, decode=_decode)
