"""Which experts a mixture-of-experts model chose, read from llama.cpp's graph while it is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._ggml import Ggml

CHOICE = b"ffn_moe_topk-"  # the name that llama.cpp's src/llama-graph.cpp gives the chosen experts of a layer


class ExpertRecorder:
    """`callback` goes into llama.cpp's context parameters; it must live as long as the context."""

    def __init__(self, lib: Any) -> None:
        self._ggml = Ggml(lib)
        self.callback = lib.ggml_backend_sched_eval_callback(self._hear)
        self._layers: dict[int, list[NDArray[np.int32]]] = {}

    def _hear(self, tensor: int, ask: bool, _: Any) -> bool:
        name = self._ggml.name(tensor)
        if not name.startswith(CHOICE):
            return not ask  # not wanted; go on
        if not ask:
            rows = self._ggml.values(tensor)[0, 0]
            self._layers.setdefault(int(name[len(CHOICE) :]), []).append(np.sort(rows, axis=1))
        return True

    def take(self) -> dict[int, NDArray[np.int32]]:
        """Layer → ids of the chosen experts, sorted, int32 [tokens, used], since the last call.

        In the last layer only the tokens whose logits were wanted.
        """
        found = {layer: np.concatenate(parts) for layer, parts in self._layers.items()}
        self._layers = {}
        return found
