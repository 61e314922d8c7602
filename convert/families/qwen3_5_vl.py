"""Qwen3.5 with its vision tower, which is left out: the text under `model.language_model.`."""

from dataclasses import replace

from ..rows import inside
from . import qwen3_5

VISION = {r"model\.visual\..+": "vision tower"}

FAMILY = replace(
    qwen3_5.FAMILY,
    architectures=("Qwen3_5ForConditionalGeneration",),
    model_types=("qwen3_5",),
    text=("text_config", qwen3_5.FAMILY.model_types),
    sources=inside("model.", "model.language_model.", qwen3_5.FAMILY.sources),
    left_out={**qwen3_5.FAMILY.left_out, **VISION},
)
