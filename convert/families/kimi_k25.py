"""Kimi K2.5, K2.6 and K2.7-Code: Kimi K2 under `language_model.`; the vision tower is left out."""

from dataclasses import replace

from . import kimi_vl

FAMILY = replace(
    kimi_vl.FAMILY,
    architectures=("KimiK25ForConditionalGeneration",),
    model_types=("kimi_k25",),
)
