"""Qwen3-MoE (30B-A3B, 235B-A22B-2507): Qwen3 attention, routed experts only."""

from dataclasses import replace

from ..family import Experts, Source
from . import qwen3

_M = "model.layers.{i}.mlp."

ROUTED = {
    "blk.{i}.ffn_gate_inp.weight": (Source(_M + "gate.weight"),),
    "blk.{i}.ffn_gate_exps.weight": (
        Source(_M + "experts.{e}.gate_proj.weight"),
        Source(_M + "experts.gate_up_proj", part=(0, 2)),
    ),
    "blk.{i}.ffn_up_exps.weight": (
        Source(_M + "experts.{e}.up_proj.weight"),
        Source(_M + "experts.gate_up_proj", part=(1, 2)),
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
    head_dim=None,
    experts=Experts(normalise=False, shared=False),
    sources={**qwen3.FAMILY.sources, **ROUTED},
)
