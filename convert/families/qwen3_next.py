"""Qwen3-Next (80B-A3B): a hybrid with many experts; its delta net's projections are fused by key head."""

from dataclasses import replace

from ..architecture import Block, DeltaNet
from ..family import Gguf
from ..hybrid import DEFAULTS as HYBRID_DEFAULTS
from ..hybrid import DELTA_NET, MTP, NORMS, draft_sources, read_hybrid
from ..readers import read_softmax_experts
from ..rows import Cut, Source, Stack
from . import qwen2, qwen2_moe

_D = "model.layers.{i}.linear_attn."
_QKVZ = _D + "in_proj_qkvz.weight"


def _cut(block: Block, part: int) -> Cut:
    """q, k, v and z of each key head, v and z for all of its value heads, follow one another."""
    d = block.attention
    assert isinstance(d, DeltaNet)  # noqa: S101 - no other attention has such tensors
    widths = [d.k_dim, d.k_dim, *2 * [d.v_heads // d.k_heads * d.v_dim]]
    return Cut(sum(widths[:part]), widths[part], sum(widths))


def _rows(block: Block) -> tuple[int, ...]:
    d = block.attention
    assert isinstance(d, DeltaNet)  # noqa: S101
    return d.k_heads * d.k_dim, d.k_heads * d.k_dim, d.v_heads * d.v_dim


FAMILY = replace(
    qwen2_moe.FAMILY,
    architectures=("Qwen3NextForCausalLM",),
    model_types=("qwen3_next",),
    read=lambda c: read_hybrid(c, read_softmax_experts(c, shared=True), fused_gates=True),
    defaults=qwen2.DEFAULTS
    | HYBRID_DEFAULTS
    | {"num_key_value_heads": 2, "num_experts_per_tok": 10, "norm_topk_prob": True},
    gguf=Gguf(architecture="qwen3next", rope_dims=True, normalises=True),
    sources={
        **qwen2_moe.FAMILY.sources,
        **DELTA_NET,
        **NORMS,
        "blk.{i}.attn_qkv.weight": (
            Stack(
                (
                    Source(_QKVZ, cut=lambda b: _cut(b, 0)),
                    Source(_QKVZ, cut=lambda b: _cut(b, 1)),
                    Source(_QKVZ, cut=lambda b: _cut(b, 2)),
                ),
                rows=_rows,
            ),
        ),
        "blk.{i}.attn_gate.weight": (Source(_QKVZ, cut=lambda b: _cut(b, 3)),),
        "blk.{i}.ssm_ba.weight": (Source(_D + "in_proj_ba.weight"),),
    },
    left_out=MTP,
    drafts=draft_sources({**qwen2_moe.FAMILY.sources, **NORMS}),
)
