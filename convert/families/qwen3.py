"""Qwen3 dense, 0.6B to 32B: a norm on every head's q and k, no bias, an explicit head_dim."""

from dataclasses import replace

from ..family import Gguf
from ..readers import read_dense, read_gqa, uniform
from ..rows import Source
from . import qwen2

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    read=lambda c: uniform(c, read_gqa(c, qk_norm=True), read_dense(c)),
    defaults=qwen2.DEFAULTS | {"head_dim": 128},
    gguf=Gguf(architecture="qwen3"),
    genai="qwen3",
    sources={
        **qwen2.FAMILY.sources,
        "blk.{i}.attn_q_norm.weight": (Source("model.layers.{i}.self_attn.q_norm.weight"),),
        "blk.{i}.attn_k_norm.weight": (Source("model.layers.{i}.self_attn.k_norm.weight"),),
    },
)
