"""Hostile configs of hybrids: each with the text that must refuse it."""

from __future__ import annotations

from typing import Any

from configs import CONFIG

QWEN = CONFIG | {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
    "partial_rotary_factor": 0.25,
}  # fmt: skip
LISTS = {
    "kda_layers": [1, 2, 3], "full_attn_layers": [4], "num_heads": 4, "head_dim": 32, "short_conv_kernel_size": 4,
}  # fmt: skip
KIMI = {
    "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "hidden_act": "silu", "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "model_max_length": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False, "vocab_size": 2048,
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "mla_use_nope": True,
    "num_experts": 8, "num_experts_per_token": 2, "num_shared_experts": 1, "moe_intermediate_size": 64,
    "first_k_dense_replace": 1, "routed_scaling_factor": 2.446, "linear_attn_config": LISTS,
}  # fmt: skip
SAVED = {k: v for k, v in KIMI.items() if k not in ("linear_attn_config", "first_k_dense_replace")} | {
    "linear_num_heads": 4, "linear_head_dim": 32, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "mlp_layer_types": ["dense"] + ["sparse"] * 3,
}  # fmt: skip


def linear(**changes: Any) -> dict[str, Any]:
    return KIMI | {"linear_attn_config": LISTS | changes}


HYBRIDS: dict[str, tuple[dict[str, Any], str]] = {
    "hybrid-unknown-kind": (
        QWEN | {"layer_types": ["linear_attention"] * 3 + ["sliding_attention"]},
        "layer_types: sliding_attention is no kind of layer that is known here",
    ),
    "hybrid-too-few-kinds": (
        QWEN | {"layer_types": ["full_attention"]}, "layer_types: 4 layers need as many kinds, found 1",
    ),
    "hybrid-without-attention": (
        QWEN | {"layer_types": ["linear_attention"] * 4}, "config.json: expected a layer of full attention, ",
    ),
    "hybrid-heads-do-not-divide": (
        QWEN | {"linear_num_value_heads": 3},
        "linear_num_value_heads: 3 heads of values cannot be shared out among 2 of keys",
    ),
    "hybrid-kernel-of-one": (
        QWEN | {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim: expected a whole number from 2 to 256, found 1",
    ),
    "hybrid-uneven-head": (
        QWEN | {"linear_value_head_dim": 64},
        "linear_value_head_dim: 64, where llama.cpp's qwen35 has the 32 of linear_key_head_dim",
    ),
    "hybrid-sections": (
        QWEN | {"rope_scaling": {"rope_type": "default", "mrope_section": [8, 8, 8]}},
        "mrope_section: [8, 8, 8] are not the 16 rotated pairs",
    ),
    "kimi-overlap": (
        linear(kda_layers=[1, 2, 3, 4]), "full_attn_layers: expected each layer once in both lists, found 4 twice",
    ),
    "kimi-hole": (
        linear(kda_layers=[1, 3]), "kda_layers and full_attn_layers: expected all 4 layers in them, found no 2",
    ),
    "kimi-out-of-range": (linear(full_attn_layers=[4, 5]), "full_attn_layers: expected layers from 1 to 4, found 5"),
    "kimi-counted-from-zero": (linear(kda_layers=[0, 1, 2]), "kda_layers: expected layers from 1 to 4, found 0"),
    "kimi-layer-is-true": (linear(kda_layers=[True, 2, 3]), "kda_layers: expected layers from 1 to 4, found True"),
    "kimi-no-list": (linear(full_attn_layers=4), "full_attn_layers: expected a list of layers, found 4"),
    "kimi-without-attention": (
        linear(kda_layers=[1, 2, 3, 4], full_attn_layers=[]), "config.json: expected a layer of full attention, ",
    ),
    "kimi-bounded-gate": (
        linear(gate_lower_bound=-5.0), "linear_attn_config: gate_lower_bound: expected only num_heads, head_dim, ",
    ),
    "kimi-kernel-of-one": (
        linear(short_conv_kernel_size=1), "short_conv_kernel_size: expected a whole number from 2 to 256, found 1",
    ),
    "kimi-other-heads": (
        linear(num_heads=2),
        "num_heads: expected the 4 of num_attention_heads, as llama.cpp's kimi-linear has, found 2",
    ),
    "kimi-rotated": (KIMI | {"mla_use_nope": False}, "mla_use_nope: expected True, found False"),
    "kimi-rope-scaling": (
        KIMI | {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling: expected none, found {'type': 'yarn'",
    ),
    "kimi-q-lora": (
        KIMI | {"q_lora_rank": 64}, "q_lora_rank: expected none, as llama.cpp's kimi-linear computes, found 64",
    ),
    "kimi-not-normalised": (
        KIMI | {"moe_renormalize": False},
        "moe_renormalize: expected true, as llama.cpp's kimi-linear computes, found false",
    ),
    "kimi-softmax": (
        KIMI | {"moe_router_activation_func": "softmax"},
        "moe_router_activation_func: expected 'sigmoid', found softmax",
    ),
    "kimi-more-used-than-experts": (
        KIMI | {"num_experts_per_token": 9}, "num_experts_per_token: expected a whole number from 1 to 8, found 9",
    ),
    "kimi-two-names": (
        KIMI | {"num_experts_per_tok": 4},
        "num_experts_per_token is 2 and num_experts_per_tok is 4, two names of one value",
    ),
    "kimi-tied": (
        KIMI | {"tie_word_embeddings": True},
        "tie_word_embeddings: expected false, since llama.cpp's kimi-linear needs output.weight, found true",
    ),
    "kimi-no-shared-expert": (KIMI | {"num_shared_experts": 0}, "expected at least 1, as llama.cpp's kimi-linear has"),
    "kimi-saved-unknown-kind": (
        SAVED | {"layer_types": ["kda"] * 3 + ["full_attention"]},
        "layer_types: expected full_attention or linear_attention, found kda",
    ),
    "kimi-saved-sparse-first": (
        SAVED | {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"]},
        "mlp_layer_types: expected 4 layers, dense ones first, then sparse, found",
    ),
    "kimi-two-lists": (
        SAVED | {"linear_attn_config": LISTS | {"kda_layers": [2, 3, 4], "full_attn_layers": [1]}},
        "layer_types: linear_attn_config says other kinds; delete the wrong ones",
    ),
    "kimi-k3": (
        {"architectures": ["KimiK3ForConditionalGeneration"], "model_type": "kimi_k3", "text_config": KIMI},
        "KimiK3ForConditionalGeneration is not converted: its attention over residuals (attn_res_block_size), ",
    ),
    "kimi-k3-text": (KIMI | {"hidden_act": "situ"}, "hidden_act: expected silu, found situ"),
}  # fmt: skip
