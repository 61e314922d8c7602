"""Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): Qwen2 attention, routed experts and a gated shared one."""

from dataclasses import replace

from ..family import Gguf
from ..readers import read_gqa, read_softmax_experts, uniform
from ..rows import Source
from . import qwen2
from .qwen3_moe import ROUTED

_M = "model.layers.{i}.mlp."

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("Qwen2MoeForCausalLM",),
    model_types=("qwen2_moe",),
    read=lambda c: uniform(c, read_gqa(c, bias_key="qkv_bias", biased=None), read_softmax_experts(c, shared=True)),
    defaults=qwen2.DEFAULTS
    | {"num_key_value_heads": 16, "num_experts_per_tok": 4, "norm_topk_prob": False, "qkv_bias": True},
    gguf=Gguf(architecture="qwen2moe", derives_heads=True, normalises=False, untied=True),
    sources={
        **qwen2.FAMILY.sources,
        **ROUTED,
        "blk.{i}.ffn_gate_inp_shexp.weight": (Source(_M + "shared_expert_gate.weight"),),
        "blk.{i}.ffn_gate_shexp.weight": (Source(_M + "shared_expert.gate_proj.weight"),),
        "blk.{i}.ffn_up_shexp.weight": (Source(_M + "shared_expert.up_proj.weight"),),
        "blk.{i}.ffn_down_shexp.weight": (Source(_M + "shared_expert.down_proj.weight"),),
    },
)
