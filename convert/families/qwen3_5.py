"""Qwen3.5 dense, 0.8B to 27B, and later ones of its shape; the vision tower and the MTP head are left out."""

from dataclasses import replace

from ..family import Gguf
from ..hybrid import DEFAULTS as HYBRID_DEFAULTS
from ..hybrid import DELTA_NET, NORMS, read_hybrid
from ..readers import read_dense
from . import qwen2

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Qwen3_5ForCausalLM",),
    model_types=("qwen3_5_text",),
    read=lambda c: read_hybrid(c, read_dense(c)),
    defaults=qwen2.DEFAULTS | HYBRID_DEFAULTS | {"num_key_value_heads": 4},
    gguf=Gguf(architecture="qwen35", rope_dims=True, sections=(11, 11, 10), tiles_values=True),
    sources={**qwen2.FAMILY.sources, **DELTA_NET, **NORMS},
    left_out={r"mtp\..+": "multi-token prediction head"},
)
