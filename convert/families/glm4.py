"""GLM-4 of 2025 (GLM-4-0414, GLM-Z1): norms after attention and feed-forward too, half of every head rotated."""

from dataclasses import replace

from ..family import Source
from . import qwen2

_L = "model.layers.{i}."
_APART = ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight")  # one matrix here

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Glm4ForCausalLM",),
    model_types=("glm4",),
    bias_key="attention_bias",
    head_dim=128,
    rotated=0.5,
    interleaved=True,
    fused_ffn=True,
    post_norms=True,
    sources={
        **{name: layouts for name, layouts in qwen2.FAMILY.sources.items() if name not in _APART},
        "blk.{i}.post_attention_norm.weight": (Source(_L + "post_self_attn_layernorm.weight"),),
        "blk.{i}.ffn_up.weight": (Source(_L + "mlp.gate_up_proj.weight"),),
        "blk.{i}.post_ffw_norm.weight": (Source(_L + "post_mlp_layernorm.weight"),),
    },
)
