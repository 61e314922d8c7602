"""Qwen3.5 mixtures with their vision tower, which is left out."""

from dataclasses import replace

from ..rows import inside
from . import qwen3_5_moe, qwen3_5_vl

FAMILY = replace(
    qwen3_5_moe.FAMILY,
    architectures=("Qwen3_5MoeForConditionalGeneration",),
    model_types=("qwen3_5_moe",),
    text=("text_config", qwen3_5_moe.FAMILY.model_types),
    sources=inside("model.", "model.language_model.", qwen3_5_moe.FAMILY.sources),
    left_out={**qwen3_5_moe.FAMILY.left_out, **qwen3_5_vl.VISION},
)
