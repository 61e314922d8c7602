"""Kimi-VL (A3B): the text is a DeepSeek-V3 under `language_model.`; the vision tower is left out."""

from dataclasses import replace

from ..rows import inside
from . import deepseek_v3

PREFIX = "language_model."

FAMILY = replace(
    deepseek_v3.FAMILY,
    architectures=("KimiVLForConditionalGeneration",),
    model_types=("kimi_vl",),
    text=("text_config", deepseek_v3.FAMILY.model_types),
    sources=inside("", PREFIX, deepseek_v3.FAMILY.sources),
    leftovers=tuple(r"language_model\." + p for p in deepseek_v3.FAMILY.leftovers),
    left_out={r"vision_tower\..+": "vision tower", r"(mm|multi_modal)_projector\..+": "vision projector"},
)
