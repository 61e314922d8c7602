"""Qwen3-VL mixtures (30B-A3B, 235B-A22B): the same with experts, whose fused matrices lie transposed."""

from dataclasses import replace

from ..family import Gguf
from ..readers import read_softmax_experts, uniform
from ..rows import Source, inside
from . import qwen3_moe, qwen3_vl
from .qwen3_vl import read_attention, with_deepstack

_E = "model.layers.{i}.mlp.experts."


def _routed(part: str) -> tuple[Source, ...]:
    """Each expert's own matrix, or [experts, hidden, gate and up] and [experts, width, hidden]."""
    own = Source(_E + f"{{e}}.{part}_proj.weight")
    if part == "down":
        return own, Source(_E + "down_proj", turned=True)
    return own, Source(_E + "gate_up_proj", cut=qwen3_moe.gate if part == "gate" else qwen3_moe.up, turned=True)


FAMILY = replace(
    qwen3_vl.FAMILY,
    architectures=("Qwen3VLMoeForConditionalGeneration",),
    model_types=("qwen3_vl_moe",),
    read=lambda c: with_deepstack(
        c, uniform(c, read_attention(c), read_softmax_experts(c, shared=False, normalise=True))
    ),
    defaults={**qwen3_vl.FAMILY.defaults, "num_key_value_heads": 16, "num_experts_per_tok": 4, "head_dim": None},
    text=("text_config", ("qwen3_vl_moe_text",)),
    sources=inside(
        "model.",
        "model.language_model.",
        {
            **qwen3_moe.FAMILY.sources,
            **{f"blk.{{i}}.ffn_{part}_exps.weight": _routed(part) for part in ("gate", "up", "down")},
        },
    ),
    gguf=Gguf(architecture="qwen3vlmoe", sections=(24, 20, 20), deepstack=True, normalises=True),
)
