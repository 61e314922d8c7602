"""4-bit codes of symmetric groups → GGUF Q4_0, the same numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..encoding import Buffer, StoredTensor

BLOCK = 32


def fits(stored: StoredTensor) -> bool:
    """Whether blocks of 32 lie within groups whose values are (code − 8) · scale."""
    s = stored.scaling
    return s.symmetric and not s.act_order and (s.columns or stored.columns) % BLOCK == 0


def repack(codes: NDArray[np.uint8], scales: NDArray[np.float32], out: Buffer) -> None:
    """Codes [rows, columns] and scales [rows, groups] → Q4_0 blocks: f16 scale, then 16 bytes.

    Byte j holds value j of a block in the low nibble and value j + 16 in the high one (`block_q4_0` in ggml's
    ggml-common.h). A scale that float16 does not hold is rounded; the caller compares.
    """
    columns = codes.shape[1]
    blocks = out.reshape(-1, 2 + BLOCK // 2)
    repeat = columns // BLOCK // scales.shape[1]
    with np.errstate(over="ignore"):  # the validation of the encoded rows finds it
        half = np.repeat(scales, repeat, axis=1).astype("<f2")
    blocks[:, :2] = half.reshape(-1, 1).view(np.uint8)
    halves = codes.reshape(-1, 2, BLOCK // 2)
    blocks[:, 2:] = halves[:, 0] | halves[:, 1] << 4
