"""Every scheme, tensor by tensor, against llama.cpp's own quantiser."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import to_gguf
from describe import stored
from numpy.typing import NDArray

from sampan import registry
from sampan.gguf import read_header
from sampan.quantize import get_scheme

# those that llama.cpp has too
SCHEMES = [n for n in registry.names("sampan.quantize.schemes") if get_scheme(n).file_type is not None]
SEARCHED = ("iq4_nl", "iq4_xs")  # a third of the time goes into these two, so not of every model
USUAL = "q4_k_m"
QUICK = {"qwen2"}
MODELS = ("trained", "trained-kimi", *tiny.MODELS)
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]


def quantize_with_llama(
    source: Path, out: Path, file_type: int, imatrix: dict[str, NDArray[np.float32]] | None = None
) -> None:
    """`llama_model_quantize`, the second of llama.cpp's two steps, with the importance of every column or without."""
    from llama_cpp import llama_cpp as lib

    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 2
    if imatrix is not None:
        data = (lib.llama_model_imatrix_data * (len(imatrix) + 1))()  # the last one has no name
        for entry, (name, values) in zip(data, imatrix.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = data
    code = lib.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    lib.llama_log_set(lib.llama_log_callback(), ctypes.c_void_p(0))
    assert code == 0


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name → type, shape and bytes."""
    found = {}
    for t, kind, data in stored(path, read_header(path)):
        shape = t.shape
        while shape[0] == 1 and len(shape) > 1:  # [1, n] and [n] are one in ggml
            shape = shape[1:]
        found[t.name] = (kind, shape, data.tobytes())
    return found


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, (kind, shape, data) in theirs.items():
        assert ours[name][:2] == (kind, shape), name
        assert ours[name][2] == data, f"{name}: {kind} bytes differ"


def compared(name: str) -> list[str]:
    """All schemes for models of each structure; for the others the usual one and, by turns, a half of them for the
    first model of a family and a quarter for its variants.
    """
    if name in {"qwen3-odd-widths", "trained-kimi"}:
        return SCHEMES
    schemes = [s for s in SCHEMES if s not in SEARCHED]
    if name in {"qwen2", "qwen3_moe-8-experts", "qwen3_5", "kimi_linear"}:
        return schemes
    every = 4 if "-" in name else 2
    return [s for i, s in enumerate(schemes) if s == USUAL or i % every == MODELS.index(name) % every]


@pytest.mark.parametrize("name", NAMES)
def test_each_scheme_has_the_bytes_of_llama_model_quantize(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    exact = "bf16" if name.startswith("trained") or tiny.MODELS[name].dtype == "bfloat16" else "f32"
    for scheme in compared(name):
        if scheme == exact:
            continue
        ours, peer = tmp_path / "ours.gguf", tmp_path / "peer.gguf"
        quantize_with_llama(gguf(name, exact), peer, get_scheme(scheme).file_type)
        to_gguf(model(name), ours, scheme)
        assert_same(tensors(ours), tensors(peer))
        assert read_header(ours).metadata == read_header(peer).metadata, scheme


def test_k_quants_are_really_used_on_the_trained_model(gguf: Callable[[str, str], Path]) -> None:
    kinds = {kind for kind, _, _ in tensors(gguf("trained", "q4_k_m")).values()}
    assert kinds == {"f32", "q4_k", "q6_k"}


def test_fallbacks_are_really_used_on_odd_widths(gguf: Callable[[str, str], Path]) -> None:
    kinds = {kind for kind, _, _ in tensors(gguf("qwen3-odd-widths", "q4_k_m")).values()}
    assert kinds == {"f32", "q5_0", "q8_0", "f16"}
