"""Which experts a mixture-of-experts model chose, read from llama.cpp's graph while it is computed."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHOICE = b"ffn_moe_topk-"  # the name that llama.cpp's src/llama-graph.cpp gives the chosen experts of a layer


class _Tensor(ctypes.Structure):
    """The beginning of `struct ggml_tensor` of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


class ExpertRecorder:
    """`callback` goes into llama.cpp's context parameters; it must live as long as the context."""

    def __init__(self, lib: Any) -> None:
        folder = Path(lib.__file__).parent / "lib"
        self._ggml = ctypes.CDLL(str(next(p for p in folder.glob("libggml-base.*") if p.suffix in {".so", ".dylib"})))
        self._ggml.ggml_get_name.restype = ctypes.c_char_p
        self._ggml.ggml_get_name.argtypes = (ctypes.c_void_p,)
        self._ggml.ggml_backend_tensor_get.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
        )  # fmt: skip
        self.callback = lib.ggml_backend_sched_eval_callback(self._hear)
        self._layers: dict[int, list[NDArray[np.int32]]] = {}

    def _hear(self, tensor: int, ask: bool, _: Any) -> bool:
        name: bytes = self._ggml.ggml_get_name(tensor)
        if not name.startswith(CHOICE):
            return not ask  # not wanted; go on
        if not ask:
            t = _Tensor.from_address(tensor)
            used, tokens = t.ne[0], t.ne[1]
            raw = (ctypes.c_char * ((tokens - 1) * t.nb[1] + used * t.nb[0]))()
            self._ggml.ggml_backend_tensor_get(tensor, raw, 0, len(raw))
            rows = np.ndarray((tokens, used), np.int32, raw, strides=(t.nb[1], t.nb[0]))
            self._layers.setdefault(int(name[len(CHOICE) :]), []).append(np.sort(rows, axis=1))
        return True

    def take(self) -> dict[int, NDArray[np.int32]]:
        """Layer → ids of the chosen experts, sorted, int32 [tokens, used], since the last call.

        In the last layer only the tokens whose logits were wanted.
        """
        found = {layer: np.concatenate(parts) for layer, parts in self._layers.items()}
        self._layers = {}
        return found
