"""GLM-4.5, 4.5-Air, 4.6 and 4.7: attention as GLM-4's with halves of heads rotated, experts as DeepSeek-V3's."""

from dataclasses import replace

from ..architecture import Architecture
from ..config import Config
from ..family import Gguf
from ..hybrid import POST_ATTENTION
from ..latent import read_sigmoid_experts
from ..readers import read_gqa, uniform
from ..rows import Source
from . import deepseek_v3, glm4, qwen2, qwen3

_L = "model.layers.{i}."


def read(config: Config) -> Architecture:
    """Biases and norms of q and k where the config says so; the norm before the feed-forward has another name."""
    attention = read_gqa(config, biased=None, partial=True, qk_norm=config.flag("use_qk_norm", False))
    return uniform(config, attention, read_sigmoid_experts(config), ffn_norm=POST_ATTENTION)


DEFAULTS = qwen2.DEFAULTS | {
    "max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "attention_bias": False,
    "partial_rotary_factor": 0.5, "num_experts_per_tok": 8, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip

FAMILY = replace(
    deepseek_v3.FAMILY,
    architectures=("Glm4MoeForCausalLM",),
    model_types=("glm4_moe",),
    read=read,
    defaults=DEFAULTS,
    gguf=Gguf(architecture="glm4moe", rope_dims=True, leading=True, pre=glm4.PRE),
    sources={
        **deepseek_v3.FAMILY.sources,
        **qwen3.FAMILY.sources,
        "blk.{i}.post_attention_norm.weight": (Source(_L + "post_attention_layernorm.weight"),),
    },
)
