"""Qwen3.5 dense, 0.8B to 27B, and later ones of its shape; the vision tower is left out."""

from dataclasses import replace

from ..family import Gguf
from ..hybrid import DEFAULTS as HYBRID_DEFAULTS
from ..hybrid import DELTA_NET, MTP, NORMS, draft_sources, read_hybrid
from ..readers import read_dense
from . import qwen2

SOURCES = {**qwen2.FAMILY.sources, **DELTA_NET, **NORMS}

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Qwen3_5ForCausalLM",),
    model_types=("qwen3_5_text",),
    read=lambda c: read_hybrid(c, read_dense(c)),
    defaults=qwen2.DEFAULTS | HYBRID_DEFAULTS | {"num_key_value_heads": 4},
    gguf=Gguf(architecture="qwen35", rope_dims=True, sections=(11, 11, 10), tiles_values=True),
    sources=SOURCES,
    left_out=MTP,
    drafts=draft_sources(SOURCES),
)
