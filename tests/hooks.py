"""Sums of squares of what every matrix is multiplied with, by forward hooks of transformers in float32.

Nothing of the engine or of its recorder is used: modules are found by the checkpoint's names, what a GGUF file has
otherwise (heads taken apart, columns in another order) is computed here from what the modules get and give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny import auto_class
from transformers import AutoConfig

from sampan.checkpoint import open_folder
from sampan.convert.architecture import MLA, DeltaNet
from sampan.convert.binding import Bound, bind
from sampan.convert.family import read_architecture

Found = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]


class _Collector:
    def __init__(self) -> None:
        self.found: Found = {}

    def add(self, name: str, x: torch.Tensor, matrix: int = 0, matrices: int = 1) -> None:
        """x [vectors, columns] went into one of a tensor's matrices."""
        columns = x.shape[-1]
        sums, counts = self.found.setdefault(name, (np.zeros((matrices, columns)), np.zeros(matrices, np.int64)))
        sums[matrix] += (x.double() ** 2).reshape(-1, columns).sum(0).numpy()
        counts[matrix] += x.numel() // columns


def sums_of_squares(folder: Path, windows: Iterable[Sequence[int]]) -> Found:
    """Canonical name → sums [matrices, columns] and counts, as a GGUF file has matrices and columns."""
    model = auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    checkpoint = open_folder(folder)
    _, arch = read_architecture(checkpoint)
    modules, c = dict(model.named_modules()), _Collector()
    for bound in bind(checkpoint, *read_architecture(checkpoint)).tensors:
        name, layer = bound.spec.name, bound.spec.layer
        if len(bound.spec.shape) == 3 and "_exps" in name:
            if "_down_" in name:
                _hear_experts(c, _experts(modules, layer), layer, bound.spec.shape[0])
        elif len(bound.spec.shape) > 1 and "conv1d" not in name and re.match(r"blk.*weight$", name):
            attention = arch.blocks[layer].attention
            if isinstance(attention, MLA) and re.search(r"attn_[kv]_b\.", name):
                if "k_b" in name:
                    _hear_latent(c, modules, bound, attention)
                continue
            each = attention.v_heads // attention.k_heads if isinstance(attention, DeltaNet) else 1
            order = (attention.k_heads, each, attention.v_dim) if each > 1 and "ssm_out" in name else None
            # only in llama.cpp's qwen35; its qwen3next keeps the groups
            _hear(c, _module(modules, bound), name, order if "qwen3_5" in folder.name else None)
    _hear(c, model.get_output_embeddings(), "output.weight", None)
    with torch.no_grad():
        for window in windows:
            model(torch.tensor([window]), use_cache=False)
    return c.found


def _module(modules: dict[str, Any], bound: Bound) -> Any:
    """By the checkpoint's name, where the makers of Kimi-Linear name some parts otherwise than transformers."""

    def plain(key: str) -> str:
        return key.replace("block_sparse_moe", "mlp").replace("forget_gate.", "")

    name = plain(bound.pieces[0].stored.name.removesuffix(".weight"))
    return next(m for key, m in modules.items() if plain(key) == name)


def _hear(c: _Collector, module: Any, name: str, order: tuple[int, int, int] | None) -> None:
    def before(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0]
        if order is not None:
            x = x.reshape(-1, *order).transpose(1, 2).reshape(x.shape)
        c.add(name, x)

    module.register_forward_pre_hook(before)


def _experts(modules: dict[str, Any], layer: int) -> Any:
    return next(m for key, m in modules.items() if re.search(rf"layers\.{layer}\.\w+\.experts$", key))


def _hear_experts(c: _Collector, module: Any, layer: int, experts: int) -> None:
    def before(m: Any, args: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
        x, chosen, *_ = [*args, *options.values()]
        x = x.reshape(-1, x.shape[-1])
        for e in range(experts):
            mine = x[(chosen == e).any(-1)]
            gate, up = (mine @ m.gate_up_proj[e].T).chunk(2, -1)
            for part in ("gate", "up"):
                c.add(f"blk.{layer}.ffn_{part}_exps.weight", mine, e, experts)
            c.add(f"blk.{layer}.ffn_down_exps.weight", torch.nn.functional.silu(gate) * up, e, experts)

    module.register_forward_pre_hook(before, with_kwargs=True)


def _hear_latent(c: _Collector, modules: dict[str, Any], bound: Bound, a: MLA) -> None:
    """A GGUF file multiplies each head's query into the latent space (k_b), and v_b with what attention made of the
    latents there.
    """
    layer, prefix = bound.spec.layer, bound.pieces[0].stored.name.removesuffix(".kv_b_proj.weight")
    kept: dict[str, torch.Tensor] = {}

    def latent(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        kept["latent"] = args[0][0]
        c.add(f"blk.{layer}.attn_kv_b.weight", args[0])

    def query(_: Any, args: Any, out: torch.Tensor) -> None:
        heads = out[0].reshape(-1, a.heads, a.nope + a.rope_dims)
        for h in range(a.heads):
            c.add(f"blk.{layer}.attn_k_b.weight", heads[:, h, : a.nope], h, a.heads)

    def attended(_: Any, args: Any, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        for h in range(a.heads):
            c.add(f"blk.{layer}.attn_v_b.weight", out[1][0, h] @ kept["latent"], h, a.heads)

    modules[f"{prefix}.kv_b_proj"].register_forward_pre_hook(latent)
    modules[f"{prefix}.q_proj" if a.q_lora is None else f"{prefix}.q_b_proj"].register_forward_hook(query)
    modules[prefix].register_forward_hook(attended)
