"""What the tests of statistics share: made-up ones for any GGUF file, and what llama.cpp makes of such a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampan.gguf import read_header
from sampan.quantize.stats import Sums, write_stats

Floats = NDArray[np.float32]


def made_up(model: Path, seed: int = 1) -> dict[str, Sums]:
    """Statistics for every matrix in the layers of a GGUF file, as uneven as real ones; one expert was never hit.

    Matrices that llama.cpp cuts of one, for each head, have one count, stacked experts one each, as in its own files.
    """
    rng, found = np.random.default_rng(seed), {}
    for t in read_header(model).tensors:
        if not t.name.startswith("blk.") or not t.name.endswith(".weight") or "norm" in t.name or "conv1d" in t.name:
            continue
        matrices = t.shape[0] if len(t.shape) == 3 else 1
        counts = np.array([100], np.int64)
        if "_exps" in t.name:
            counts = rng.integers(1, 200, matrices)
            counts[1] = 0
        values = np.exp(2 * rng.standard_normal((matrices, t.shape[-1])))
        values[0, :3] *= 1e3  # a few columns stand out
        if len(counts) > 1:
            values *= counts[:, None]
        found[t.name] = Sums(values.reshape(-1), counts)
    return found


def latents(found: dict[str, Sums], columns: int) -> dict[str, Sums]:
    """The same and the inputs of the matrices that k_b and v_b are cut of, which an ONNX graph has as one."""
    layers = [n for n in found if n.endswith("attn_v_b.weight")]
    rng = np.random.default_rng(2)
    named = {
        n.replace("attn_v_b", "attn_kv_b"): Sums(np.exp(rng.standard_normal(columns)), np.array([7])) for n in layers
    }
    return found | named


def write(path: Path, found: dict[str, Sums]) -> Path:
    write_stats(path, found, {"source": "made up", "text": "none", "tokens": "100"}, 512)
    return path


def as_llama_reads(path: Path) -> dict[str, Floats]:
    """Name → importance, from an imatrix file by the gguf package and the rule of llama.cpp's quantize.cpp."""
    from gguf import GGUFReader

    tensors = {t.name: np.array(t.data, np.float32) for t in GGUFReader(path).tensors}
    found = {}
    for name in tensors:
        if base := name.removesuffix(".in_sum2") if name.endswith(".in_sum2") else "":
            counts = tensors[f"{base}.counts"].reshape(-1, 1)
            sums = tensors[name].reshape(len(counts), -1)
            mean = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
            found[base] = np.ascontiguousarray(mean.reshape(-1))
    return found
