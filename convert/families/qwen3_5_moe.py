"""Qwen3.5 mixtures (35B-A3B, 122B-A10B, 397B-A17B): the same hybrid with experts and a gated shared one."""

from dataclasses import replace

from ..family import Gguf
from ..hybrid import DELTA_NET, NORMS, draft_sources, read_hybrid
from ..readers import read_softmax_experts
from . import qwen2_moe, qwen3_5

SOURCES = {**qwen2_moe.FAMILY.sources, **DELTA_NET, **NORMS}

FAMILY = replace(
    qwen3_5.FAMILY,
    architectures=("Qwen3_5MoeForCausalLM",),
    model_types=("qwen3_5_moe_text",),
    read=lambda c: read_hybrid(c, read_softmax_experts(c, normalise=True, shared=True)),
    defaults={**qwen3_5.FAMILY.defaults, "num_key_value_heads": 2, "num_experts_per_tok": 8},
    gguf=Gguf(architecture="qwen35moe", rope_dims=True, sections=(11, 11, 10), tiles_values=True, normalises=True),
    sources=SOURCES,
    drafts=draft_sources(SOURCES),
)
