"""Qwen3-VL dense (2B, 4B, 8B, 32B): Qwen3 with three positions for pictures; the vision tower is left out."""

from dataclasses import replace

from sampan.errors import brief, wrong

from ..architecture import GQA, Architecture
from ..config import Config
from ..family import PICTURES, Gguf
from ..hybrid import read_sections
from ..readers import read_dense, read_gqa, uniform
from ..rows import inside
from . import qwen3, qwen3_5_vl

DEEPSTACK = "deepstack_visual_indexes"


def read_attention(config: Config) -> GQA:
    """Qwen3's, with sections of its rotation."""
    attention = read_gqa(config, qk_norm=True)
    return replace(attention, rope=read_sections(config, attention.rope))


def with_deepstack(config: Config, arch: Architecture) -> Architecture:
    """Features of pictures are added to the outputs of the first layers, one layer for each that they come from."""
    pictures = config.section(PICTURES)
    found = pictures.get(DEEPSTACK) or []
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise wrong(pictures.at(DEEPSTACK), "a list of layers", brief(found))
    if len(found) > len(arch.blocks):
        raise wrong(pictures.at(DEEPSTACK), f"at most {len(arch.blocks)} layers", len(found))
    return replace(arch, deepstack=len(found))


FAMILY = replace(
    qwen3.FAMILY,
    architectures=("Qwen3VLForConditionalGeneration",),
    model_types=("qwen3_vl",),
    read=lambda c: with_deepstack(c, uniform(c, read_attention(c), read_dense(c))),
    defaults={**qwen3.FAMILY.defaults, "max_position_embeddings": 128000, "rope_theta": 500000.0},
    text=("text_config", ("qwen3_vl_text",)),
    ties_above=True,
    sources=inside("model.", "model.language_model.", qwen3.FAMILY.sources),
    left_out=qwen3_5_vl.VISION,
    gguf=Gguf(architecture="qwen3vl", sections=(24, 20, 20), deepstack=True),
)
