"""What every matrix of a model is multiplied with, read from llama.cpp's graph while it is computed.

The same sums as llama.cpp's own tools/imatrix, and two more: of the head, and of the normed latent that k_b and v_b
are multiplied with where they are not taken apart.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._ggml import Ggml, Tensor

Sums = tuple[NDArray[np.float64], NDArray[np.int64]]
MATRIX = re.compile(rb"blk\.\d+\.\w+\.weight|output\.weight")
TIED, HEAD = b"token_embd.weight", b"output.weight"
LATENT_NORM, LATENT = b"attn_kv_a_norm", b"attn_kv_b"


class InputRecorder:
    """`callback` goes into llama.cpp's context parameters; it must live as long as the context."""

    def __init__(self, lib: Any) -> None:
        self._ggml = Ggml(lib)
        self.callback = lib.ggml_backend_sched_eval_callback(self._hear)
        self._found: dict[str, Sums] = {}
        self._fault: Exception | None = None

    def take(self) -> dict[str, Sums]:
        """As `LlamaEngine.take_inputs`."""
        if self._fault is not None:
            raise self._fault
        found, self._found = self._found, {}
        return found

    def _hear(self, tensor: int, ask: bool, _: Any) -> bool:
        try:
            operation = self._ggml.operation(tensor)
            name = self._wanted(operation, tensor)
            if name is None:
                return not ask
            if not ask:
                self._add(name.decode(), tensor, operation)
        except Exception as e:  # else ctypes would print it and go on
            self._fault = self._fault or e
        return True

    def _wanted(self, operation: bytes, tensor: int) -> bytes | None:
        """The matrix whose inputs an operation tells."""
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID", b"MUL"):
            return None
        first, second = Tensor.from_address(tensor).src[:2]
        if operation == b"MUL":
            name = self._ggml.name(second)
            return name.replace(LATENT_NORM, LATENT) if LATENT_NORM in name else None
        name = self._ggml.name(first)
        name = HEAD if name == TIED else name
        return name if MATRIX.fullmatch(name) else None

    def _add(self, name: str, tensor: int, operation: bytes) -> None:
        if operation == b"MUL":
            x = self._ggml.values(tensor)
            self._sum(name, np.einsum("dcba,dcba->a", x, x)[None], np.array([x.size // x.shape[-1]]))
            return
        weight, inputs, chosen = Tensor.from_address(tensor).src[:3]
        shape, x = Tensor.from_address(weight).ne, self._ggml.values(inputs)
        if operation == b"MUL_MAT_ID":
            self._sum(name, *_by_expert(x[0], self._ggml.values(chosen)[0, 0], shape[2]))
            return
        matrices = shape[2] * shape[3]
        if matrices > 1 and x.shape[:2] != (shape[3], shape[2]):
            raise AssertionError(f"{name}: {matrices} matrices for inputs {x.shape}")
        squares = np.einsum("dcba,dcba->dca", x, x)
        squares = squares.reshape(matrices, -1) if matrices > 1 else squares.sum(axis=(0, 1))[None]
        self._sum(name, squares, np.array([x.size // x.shape[-1] // matrices]))

    def _sum(self, name: str, squares: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
        if name not in self._found:
            self._found[name] = np.zeros(squares.shape), np.zeros(counts.shape, np.int64)
        values, seen = self._found[name]
        values += squares
        seen += counts


def _by_expert(
    x: NDArray[np.float32], chosen: NDArray[np.int32], experts: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Sums of squares [experts, columns] and counts [experts]. `x`: [tokens, used or 1, columns], `chosen`: [tokens,
    used].
    """
    squares = np.broadcast_to(x * x, (*chosen.shape, x.shape[-1])).reshape(-1, x.shape[-1])
    order = np.argsort(chosen.reshape(-1), kind="stable")
    counts = np.bincount(chosen.reshape(-1), minlength=experts)
    hit = np.flatnonzero(counts)
    sums = np.zeros((experts, x.shape[-1]), np.float32)
    sums[hit] = np.add.reduceat(squares[order], np.concatenate([[0], np.cumsum(counts[hit])[:-1]]), axis=0)
    return sums, counts
