"""What is needed of ggml to look at tensors of a graph while it is computed."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS = {0: np.float32, 26: np.int32}  # ggml's numbers of types


class Tensor(ctypes.Structure):
    """The beginning of `struct ggml_tensor` of ggml.h, as llama-cpp-python 0.3.36 has it."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
    )


class Ggml:
    """The library inside of the installed llama_cpp package; tensors are addresses."""

    def __init__(self, lib: Any) -> None:
        folder = Path(lib.__file__).parent / "lib"
        self._lib = ctypes.CDLL(str(next(p for p in folder.glob("libggml-base.*") if p.suffix in {".so", ".dylib"})))
        self._lib.ggml_get_name.restype = ctypes.c_char_p
        self._lib.ggml_get_name.argtypes = (ctypes.c_void_p,)
        self._lib.ggml_op_desc.restype = ctypes.c_char_p
        self._lib.ggml_op_desc.argtypes = (ctypes.c_void_p,)
        self._lib.ggml_backend_tensor_get.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
        )  # fmt: skip

    def name(self, tensor: int) -> bytes:
        found: bytes = self._lib.ggml_get_name(tensor)
        return found

    def operation(self, tensor: int) -> bytes:
        """What the tensor is the result of, such as MUL_MAT."""
        found: bytes = self._lib.ggml_op_desc(tensor)
        return found

    def values(self, tensor: int) -> NDArray[Any]:
        """A copy of its numbers, dimensions in ggml's order turned round: [3, 2, 1, 0]."""
        t = Tensor.from_address(tensor)
        span = sum((n - 1) * step for n, step in zip(t.ne, t.nb, strict=True))
        raw = (ctypes.c_char * (span + t.nb[0]))()
        self._lib.ggml_backend_tensor_get(tensor, raw, 0, len(raw))
        return np.ndarray(tuple(t.ne)[::-1], NUMBERS[t.type], raw, strides=tuple(t.nb)[::-1])
