"""What a storage encoding is, and how the one for a tensor is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampan.errors import wrong
from sampan.registry import load_all
from sampan.safetensors import TensorInfo


@dataclass(frozen=True, slots=True)
class Encoding:
    """`decode(dtype, raw, out)`: the stored bytes of some whole rows → float32 [rows, columns]."""

    dtypes: tuple[str, ...]
    decode: Callable[[str, NDArray[np.uint8], NDArray[np.float32]], None]


def find_encoding(info: TensorInfo, where: str) -> Encoding:
    """The encoding that stores this tensor; an unknown dtype is refused."""
    encodings: dict[str, Encoding] = load_all("sampan.convert.storage", "ENCODING")
    for encoding in encodings.values():
        if info.dtype in encoding.dtypes:
            return encoding
    known = sorted(d for e in encodings.values() for d in e.dtypes)
    raise wrong(f"{where}: {info.name}", f"a dtype among {', '.join(known)}", info.dtype)
