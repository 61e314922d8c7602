"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts under GLM's names of things."""

from dataclasses import replace

from ..architecture import Architecture
from ..config import Config
from ..latent import read as read_latent
from . import deepseek_v3, glm4


def read(config: Config) -> Architecture:
    """Without mlp_layer_types transformers makes the first layer dense, whatever first_k_dense_replace says."""
    if config.get("mlp_layer_types") is None:
        config.is_default("first_k_dense_replace", 1)
        config = replace(config, values={**config.values, "first_k_dense_replace": 1})
    return read_latent(config)


DEFAULTS = deepseek_v3.DEFAULTS | {
    "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "num_experts_per_tok": 4, "routed_scaling_factor": 1.8,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": None, "q_lora_rank": 768,
}  # fmt: skip

FAMILY = replace(
    deepseek_v3.FAMILY,
    architectures=("Glm4MoeLiteForCausalLM",),
    model_types=("glm4_moe_lite",),
    read=read,
    defaults=DEFAULTS,
    gguf=replace(deepseek_v3.GGUF, pre=glm4.PRE),
)
