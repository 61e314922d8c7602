"""Qwen3 dense, 0.6B to 32B: a norm on every head's q and k, no bias, an explicit head_dim."""

from dataclasses import replace

from ..family import Source
from . import qwen2

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    qkv_bias=False,
    qk_norm=True,
    head_dim=128,
    sources={
        **qwen2.FAMILY.sources,
        "blk.{i}.attn_q_norm.weight": (Source("model.layers.{i}.self_attn.q_norm.weight"),),
        "blk.{i}.attn_k_norm.weight": (Source("model.layers.{i}.self_attn.k_norm.weight"),),
    },
)
