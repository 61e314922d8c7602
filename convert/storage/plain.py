"""Plain numbers: bfloat16, float16 and float32 tensors, row after row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampan.quantize.ggml import decode_rows
from sampan.quantize.types import number_type

from ..encoding import Encoding


def _decode(dtype: str, raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    decode_rows(number_type(dtype.lower()), raw, out)


ENCODING = Encoding(dtypes=("BF16", "F16", "F32"), decode=_decode)
