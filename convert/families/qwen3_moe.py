"""Qwen3-MoE (30B-A3B, 235B-A22B-2507): Qwen3 attention, routed experts only."""

from dataclasses import replace

from ..architecture import Block, MoE
from ..family import Gguf
from ..readers import read_gqa, read_softmax_experts, uniform
from ..rows import Cut, Source
from . import qwen2, qwen3

_M = "model.layers.{i}.mlp."


def gate(block: Block) -> Cut:
    """Of each expert's fused matrix the first half; up is the second."""
    assert isinstance(block.ffn, MoE)  # noqa: S101 - dense layers have no such tensors
    return Cut(0, block.ffn.width, 2 * block.ffn.width)


def up(block: Block) -> Cut:
    return replace(gate(block), offset=gate(block).take)


ROUTED = {
    "blk.{i}.ffn_gate_inp.weight": (Source(_M + "gate.weight"),),
    "blk.{i}.ffn_gate_exps.weight": (
        Source(_M + "experts.{e}.gate_proj.weight"),
        Source(_M + "experts.gate_up_proj", cut=gate),
    ),
    "blk.{i}.ffn_up_exps.weight": (
        Source(_M + "experts.{e}.up_proj.weight"),
        Source(_M + "experts.gate_up_proj", cut=up),
    ),
    "blk.{i}.ffn_down_exps.weight": (
        Source(_M + "experts.{e}.down_proj.weight"),
        Source(_M + "experts.down_proj"),
    ),
}

FAMILY = replace(
    qwen3.FAMILY,
    architectures=("Qwen3MoeForCausalLM",),
    model_types=("qwen3_moe",),
    read=lambda c: uniform(c, read_gqa(c, qk_norm=True), read_softmax_experts(c, shared=False)),
    defaults=qwen2.DEFAULTS | {"num_key_value_heads": 4, "num_experts_per_tok": 8, "norm_topk_prob": False},
    gguf=Gguf(architecture="qwen3moe", normalises=True),
    sources={**qwen3.FAMILY.sources, **ROUTED},
)
