"""GLM-4 of 2025 (GLM-4-0414, GLM-Z1): norms after attention and feed-forward too, half of every head rotated."""

from dataclasses import replace

from ..architecture import Architecture
from ..config import Config
from ..family import Gguf
from ..readers import read_dense, read_gqa, uniform
from ..rows import Source
from . import qwen2

_L = "model.layers.{i}."
_APART = ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight")  # one matrix here


def read(config: Config) -> Architecture:
    """Biases of q, k and v by default, 128 dimensions a head, the first half of them rotated."""
    attention = read_gqa(config, biased=None, interleaved=True, partial=True)
    return uniform(config, attention, read_dense(config, fused=True), post_norms=True)


PRE = {"llama-bpe": "glm4"}
DEFAULTS = qwen2.DEFAULTS | {
    "max_position_embeddings": 131072, "num_key_value_heads": 2, "rms_norm_eps": 1.5625e-07, "head_dim": 128,
    "attention_bias": True, "partial_rotary_factor": 0.5,
}  # fmt: skip

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Glm4ForCausalLM",),
    model_types=("glm4",),
    read=read,
    defaults=DEFAULTS,
    gguf=Gguf(architecture="glm4", interleaved=True, rope_dims=True, pre=PRE),
    sources={
        **{name: layouts for name, layouts in qwen2.FAMILY.sources.items() if name not in _APART},
        "blk.{i}.post_attention_norm.weight": (Source(_L + "post_self_attn_layernorm.weight"),),
        "blk.{i}.ffn_up.weight": (Source(_L + "mlp.gate_up_proj.weight"),),
        "blk.{i}.post_ffw_norm.weight": (Source(_L + "post_mlp_layernorm.weight"),),
    },
)
