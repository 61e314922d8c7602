"""Encode and decode rows with ggml's own kernels, from the libggml inside the installed llama_cpp package, and plain
numbers without it.

`ggml_quantize_chunk` is what `llama_model_quantize` calls, so the bytes are the same. ctypes releases
the GIL for the call: threads scale.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError
from sampan.extras import advice

from . import plain
from .types import NumberType

F16_MAX = 65504.0


def encode_rows(
    kind: NumberType,
    rows: NDArray[np.float32],
    out: NDArray[np.uint8],
    weights: NDArray[np.float32] | None = None,
) -> None:
    """Encode float32 [n, k] into `out`, uint8 [n · row_bytes(k)]; `weights`, float32 [k] or None, is what ggml calls
    the importance matrix.

    Raises InputError when the encoded blocks are not valid: a scale or value that the type cannot hold.
    """
    n, k = rows.shape
    if kind.name == "f16" and max(-float(rows.min()), float(rows.max())) > F16_MAX:
        raise InputError("its values do not fit f16 (beyond ±65504)")
    if kind.name in plain.NAMES:
        if not plain.encode(kind.name, rows, out):
            raise _no_fit(kind)
        return
    written = _library().ggml_quantize_chunk(
        kind.id,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        n,
        k,
        None if weights is None else weights.ctypes.data,
    )
    if written != out.nbytes:
        raise AssertionError(f"ggml_quantize_chunk wrote {written} bytes of {kind.name}, expected {out.nbytes}")
    validate_rows(kind, out)


def validate_rows(kind: NumberType, data: NDArray[np.uint8]) -> None:
    """Refuse encoded blocks whose scale is not finite."""
    if kind.name in plain.NAMES:
        fits = plain.valid(kind.name, data)
    else:
        fits = _library().ggml_validate_row_data(kind.id, data.ctypes.data, data.nbytes)
    if not fits:
        raise _no_fit(kind)


def _no_fit(kind: NumberType) -> InputError:
    return InputError(f"its values do not fit {kind.name} (a scale overflows float16)")


def pack_q4_0(codes: NDArray[np.uint8], scales: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Codes [n, k] with scales [n, k / 32] of values (code - 8) · scale → Q4_0 blocks; a scale is rounded to float16.

    A block (`block_q4_0` in ggml-common.h) is the scale and 16 bytes; byte j holds value j low and value j + 16 high.
    """
    blocks = out.reshape(-1, 18)
    with np.errstate(over="ignore"):  # infinite scales are refused by their validation
        blocks[:, :2] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
    halves = codes.reshape(-1, 2, 16)
    np.bitwise_or(halves[:, 0], halves[:, 1] << 4, out=blocks[:, 2:])


def decode_rows(kind: NumberType, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Decode uint8 [n · row_bytes(k)] into `out`, float32 [n, k] (contiguous, no more than `data` holds)."""
    if data.nbytes < out.shape[0] * kind.row_bytes(out.shape[1]) or not out.flags.c_contiguous:
        raise AssertionError(f"{data.nbytes} bytes of {kind.name} for float32 {out.shape}")
    if kind.name in plain.NAMES:
        plain.decode(kind.name, data, out)
    else:
        _library().ggml_get_type_traits(kind.id).contents.to_float(data.ctypes.data, out.ctypes.data, out.size)


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def _library() -> Any:
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    found = sorted(p for p in folder.glob("libggml-base.*") if p.suffix in {".so", ".dylib"}) if folder else []
    if not found:
        raise InputError(
            "llama_cpp: expected libggml-base in the installed package, found none; "
            f"install it with `{advice('llama_cpp')}`"
        )
    lib = ctypes.CDLL(str(found[0]))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    return lib
