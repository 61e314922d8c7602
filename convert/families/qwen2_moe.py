"""Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): Qwen2 attention, routed experts and a gated shared one."""

from dataclasses import replace

from ..family import Experts, Source
from . import qwen2
from .qwen3_moe import ROUTED

_M = "model.layers.{i}.mlp."

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Qwen2MoeForCausalLM",),
    model_types=("qwen2_moe",),
    experts=Experts(normalise=False, shared=True),
    sources={
        **qwen2.FAMILY.sources,
        **ROUTED,
        "blk.{i}.ffn_gate_inp_shexp.weight": (Source(_M + "shared_expert_gate.weight"),),
        "blk.{i}.ffn_gate_shexp.weight": (Source(_M + "shared_expert.gate_proj.weight"),),
        "blk.{i}.ffn_up_shexp.weight": (Source(_M + "shared_expert.up_proj.weight"),),
        "blk.{i}.ffn_down_shexp.weight": (Source(_M + "shared_expert.down_proj.weight"),),
    },
)
