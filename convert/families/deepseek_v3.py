"""The DeepSeek-V3 shape: Kimi K2, K2-0905 and K2-Thinking (kimi_k2), Moonlight (deepseek_v3)."""

from ..architecture import MLA, Block
from ..family import Family, Gguf
from ..latent import read
from ..rows import Cut, Source
from . import qwen2
from .qwen3_moe import ROUTED

_L = "model.layers.{i}."
_A, _M = _L + "self_attn.", _L + "mlp."


def _keys(block: Block) -> Cut:
    """kv_b [heads · (nope + v), kv_lora]: k's rows of every head, then v's."""
    a = block.attention
    assert isinstance(a, MLA)  # noqa: S101 - no other attention has such tensors
    return Cut(0, a.nope, a.nope + a.v)


def _values(block: Block) -> Cut:
    a = block.attention
    assert isinstance(a, MLA)  # noqa: S101
    return Cut(a.nope, a.v, a.nope + a.v)


DEFAULTS = qwen2.DEFAULTS | {
    "max_position_embeddings": 4096, "num_key_value_heads": None, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "n_shared_experts": 1,
    "q_lora_rank": 1536, "rope_interleave": True,
}  # fmt: skip

GGUF = Gguf(architecture="deepseek2", interleaved=True, rope_dims=True, vocab=True, leading=True)
FAMILY = Family(
    architectures=("DeepseekV3ForCausalLM",),
    model_types=("deepseek_v3", "kimi_k2"),
    read=read,
    sources={
        **qwen2.FAMILY.sources,
        **ROUTED,
        "blk.{i}.attn_q_a.weight": (Source(_A + "q_a_proj.weight"),),
        "blk.{i}.attn_q_a_norm.weight": (Source(_A + "q_a_layernorm.weight"),),
        "blk.{i}.attn_q_b.weight": (Source(_A + "q_b_proj.weight"),),
        "blk.{i}.attn_kv_a_mqa.weight": (Source(_A + "kv_a_proj_with_mqa.weight"),),
        "blk.{i}.attn_kv_a_norm.weight": (Source(_A + "kv_a_layernorm.weight"),),
        "blk.{i}.attn_k_b.weight": (Source(_A + "kv_b_proj.weight", cut=_keys),),
        "blk.{i}.attn_v_b.weight": (Source(_A + "kv_b_proj.weight", cut=_values),),
        "blk.{i}.exp_probs_b.bias": (Source(_M + "gate.e_score_correction_bias"),),
        "blk.{i}.ffn_gate_shexp.weight": (Source(_M + "shared_experts.gate_proj.weight"),),
        "blk.{i}.ffn_up_shexp.weight": (Source(_M + "shared_experts.up_proj.weight"),),
        "blk.{i}.ffn_down_shexp.weight": (Source(_M + "shared_experts.down_proj.weight"),),
    },
    leftovers=qwen2.FAMILY.leftovers,
    defaults=DEFAULTS,
    gguf=GGUF,
    genai="qwen2",
)
