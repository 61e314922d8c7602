"""A tied checkpoint with a head in its file: is that the embedding, or a head of its own?

transformers compares the two when it loads them, and ties them only if they are equal (`tie_weights`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampan.checkpoint import Checkpoint
from sampan.quantize import decode_rows, encode_rows, number_type
from sampan.safetensors import TensorInfo

from .rows import Layout, Source

DTYPES = ("BF16", "F16", "F32")  # from the coarsest
BLOCK = 1 << 22  # values compared at once


def has_own_head(checkpoint: Checkpoint, head: Sequence[Layout], embedding: Sequence[Layout]) -> bool:
    """Whether the head in the file differs from the embedding; one in another dtype is compared in the coarser one.

    Of a checkpoint that is not on this disk it is taken for equal: what streams it compares the bytes.
    """
    tensors = checkpoint.tensors()
    found = []
    for layouts in (head, embedding):
        names = [n for s in layouts if isinstance(s, Source) for n in (s.name, s.name.removeprefix("model."))]
        name = next((n for n in names if n in tensors), None)
        if name is None:
            return any(n.removesuffix("weight") + "qweight" in tensors for n in names) and layouts is head
        shard, info = tensors[name]
        path = checkpoint.shards[shard].path
        if path is None:
            return False
        found.append((path, info))
    (a_path, a), (b_path, b) = found
    if a.shape != b.shape or not {a.dtype, b.dtype} <= set(DTYPES):
        return True
    return not _equal(a_path, a, b_path, b, a_path.stat().st_mtime_ns, b_path.stat().st_mtime_ns)


@cache
def _equal(a_path: Path, a: TensorInfo, b_path: Path, b: TensorInfo, *modified: int) -> bool:
    """Whether two tensors are equal in the coarser of their dtypes. `modified` makes an answer end with its file."""
    kind = number_type(min(a.dtype, b.dtype, key=DTYPES.index).lower())
    count = a.nbytes // _size(a)
    with a_path.open("rb") as fa, b_path.open("rb") as fb:
        for start in range(0, count, BLOCK):
            n = min(BLOCK, count - start)
            raw = [os.pread(f.fileno(), n * _size(t), t.offset + start * _size(t)) for f, t in ((fa, a), (fb, b))]
            if a.dtype == b.dtype:
                if raw[0] != raw[1]:
                    return False
                continue
            if _encoded(raw[0], a, kind.name) != _encoded(raw[1], b, kind.name):
                return False
    return True


def _size(info: TensorInfo) -> int:
    return 4 if info.dtype == "F32" else 2


def _encoded(raw: bytes, info: TensorInfo, kind: str) -> bytes:
    values: NDArray[np.float32] = np.empty((1, len(raw) // _size(info)), np.float32)
    decode_rows(number_type(info.dtype.lower()), np.frombuffer(raw, np.uint8), values)
    out = np.empty(number_type(kind).row_bytes(values.size), np.uint8)
    encode_rows(number_type(kind), values, out)
    return out.tobytes()
