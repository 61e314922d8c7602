"""Qwen2 and Qwen2.5, 0.5B to 72B: biased q, k and v; the small sizes tie the embedding."""

from ..family import Family, Gguf
from ..readers import read_dense, read_gqa, uniform
from ..rows import Source

_L = "model.layers.{i}."
DEFAULTS = {
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "max_position_embeddings": 32768,
    "num_key_value_heads": 32, "rope_theta": 10000.0, "qkv_bias": True,
}  # fmt: skip

FAMILY = Family(
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    read=lambda c: uniform(c, read_gqa(c, bias_key="qkv_bias", biased=None), read_dense(c)),
    sources={
        "token_embd.weight": (Source("model.embed_tokens.weight"),),
        "output_norm.weight": (Source("model.norm.weight"),),
        "output.weight": (Source("lm_head.weight"),),
        "blk.{i}.attn_norm.weight": (Source(_L + "input_layernorm.weight"),),
        "blk.{i}.attn_q.weight": (Source(_L + "self_attn.q_proj.weight"),),
        "blk.{i}.attn_q.bias": (Source(_L + "self_attn.q_proj.bias"),),
        "blk.{i}.attn_k.weight": (Source(_L + "self_attn.k_proj.weight"),),
        "blk.{i}.attn_k.bias": (Source(_L + "self_attn.k_proj.bias"),),
        "blk.{i}.attn_v.weight": (Source(_L + "self_attn.v_proj.weight"),),
        "blk.{i}.attn_v.bias": (Source(_L + "self_attn.v_proj.bias"),),
        "blk.{i}.attn_output.weight": (Source(_L + "self_attn.o_proj.weight"),),
        "blk.{i}.ffn_norm.weight": (Source(_L + "post_attention_layernorm.weight"),),
        "blk.{i}.ffn_gate.weight": (Source(_L + "mlp.gate_proj.weight"),),
        "blk.{i}.ffn_up.weight": (Source(_L + "mlp.up_proj.weight"),),
        "blk.{i}.ffn_down.weight": (Source(_L + "mlp.down_proj.weight"),),
    },
    defaults=DEFAULTS,
    gguf=Gguf(architecture="qwen2", derives_heads=True, wide=lambda arch: len(arch.blocks) == 80),
    genai="qwen2",
    leftovers=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq"),
)
