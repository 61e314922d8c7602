"""Hostile configs: each with the text that must refuse it."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 2048,
}
QWEN2 = CONFIG | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": None}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LLAMA = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_parameters": LLAMA3}
GLM4 = CONFIG | {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4"}

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-architecture": (
        CONFIG | {"architectures": ["MambaForCausalLM"]},
        "found MambaForCausalLM; `--to onnx --exporter optimum` may know it",
    ),
    "first-baichuan": (
        CONFIG | {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"},
        "found BaiChuanForCausalLM; `--to onnx --exporter optimum` may know it",
    ),
    "baichuan-13b": (
        CONFIG | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "num_hidden_layers": 40},
        "Baichuan's 13B biases attention by distance (ALiBi), which is not written; its 7B has",
    ),
    "no-architecture": (CONFIG | {"architectures": None}, "architectures: expected one of"),
    "other-model-type": (
        CONFIG | {"model_type": "qwen2"},
        "expected qwen3 with Qwen3ForCausalLM, found qwen2",
    ),
    "unknown-activation": (CONFIG | {"hidden_act": "relu2"}, "hidden_act: expected silu, found relu2"),
    "unknown-quantisation": (
        CONFIG | {"quantization_config": {"quant_method": "hqq"}},
        "quantization_config: quant_method: expected one of awq, fp8, ",
    ),
    "bitsandbytes": (
        CONFIG | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantization_config: weights of bitsandbytes are not read: load the model with transformers and save what "
        "model.dequantize() makes of it; if the weights are plain already, delete quantization_config",
    ),
    "bitsandbytes-without-a-method": (
        CONFIG | {"quantization_config": {"load_in_8bit": True}},
        "quantization_config: weights of bitsandbytes are not read: ",
    ),
    "unknown-rope": (
        CONFIG | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_scaling: rope_type: expected default, linear, yarn or llama3, found dynamic",
    ),
    "llama3-rope-without-factors": (
        CONFIG | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        "rope_parameters: low_freq_factor: expected a positive number, found None",
    ),
    "llama3-rope-without-ramp": (
        LLAMA | {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}},
        "high_freq_factor: expected more than low_freq_factor 1, found 1.0",
    ),
    "llama3-rope-for-qwen3": (
        CONFIG | {"rope_parameters": LLAMA3},
        "rope_type: expected default, linear or yarn, as llama.cpp's qwen3 computes, found llama3",
    ),
    "llama-mlp-bias": (LLAMA | {"mlp_bias": True}, "mlp_bias: expected False, found True"),
    "rope-without-kind": (
        CONFIG | {"rope_scaling": {"factor": 2.0}},
        "rope_type: expected the kind of scaling that factor belongs to, found None",
    ),
    "rope-by-layer": (
        CONFIG | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e3}}},
        "expected one rope for all layers, found one for each of full_attention, sliding_attention",
    ),
    "rope-not-an-object": (CONFIG | {"rope_scaling": "yarn"}, "rope_scaling: expected an object, found yarn"),
    "rope-with-mscale": (
        CONFIG | {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0}},
        "mscale: expected none, found 1.0",
    ),
    "yarn-betas": (
        CONFIG | {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 16}},
        "beta_fast and beta_slow: expected 32 and 1, as llama.cpp's qwen3 computes, found 16 and 1",
    ),
    "glm4-rotates-a-third": (GLM4 | {"partial_rotary_factor": 0.3}, "expected a share of 128 dimensions, found 0.3"),
    "glm4-rotates-more-than-a-head": (
        GLM4 | {"partial_rotary_factor": 2},
        "expected a share of 128 dimensions, found 2.0",
    ),
    "glm4-rotation-is-no-number": (GLM4 | {"partial_rotary_factor": "x"}, "expected a positive number, found x"),
    "glm4-yarn": (
        GLM4 | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "rope_scaling: rope_type: expected 'default', found yarn",
    ),
    "partial-rotary": (CONFIG | {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1 or 1.0, found 0.5"),
    "no-rope-theta": (CONFIG | {"rope_theta": None}, "rope_theta: expected a positive number, found None"),
    "attention-bias": (CONFIG | {"attention_bias": True}, "attention_bias: expected False, found True"),
    "sliding-window": (
        CONFIG | {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2},
        "use_sliding_window: expected false, found true with a window of 128",
    ),
    "sliding-layers": (
        CONFIG | {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]},
        "layer_types: expected full_attention in every layer, found sliding_attention",
    ),
    "not-causal": (CONFIG | {"is_causal": False}, "is_causal: expected True, found False"),
    "heads-do-not-divide": (CONFIG | {"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of 4 heads"),
    "no-hidden-size": (CONFIG | {"hidden_size": None}, "hidden_size: expected a whole number from 1 to"),
    "absurd-layers": (
        CONFIG | {"num_hidden_layers": 10**9},
        "expected a whole number from 1 to 10000",
    ),
    "layers-as-text": (CONFIG | {"num_hidden_layers": "4"}, "num_hidden_layers: expected a whole number"),
    "infinite-eps": (CONFIG | {"rms_norm_eps": float("inf")}, "rms_norm_eps: expected a positive number, found inf"),
    "tied-as-text": (CONFIG | {"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false, found yes"),
    "head-dim-for-qwen2": (
        QWEN2 | {"head_dim": 128},
        "head_dim: expected 64, which llama.cpp derives for qwen2, found 128",
    ),
}

MOE = CONFIG | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
CONFIGS |= {
    "experts-not-normalised": (
        MOE | {"norm_topk_prob": False},
        "norm_topk_prob: expected true, as llama.cpp's qwen3moe computes, found false",
    ),
    "some-dense-layers": (
        MOE | {"mlp_only_layers": [0]},
        "expected experts in every layer, as llama.cpp's qwen3moe has, found dense layers",
    ),
    "more-used-than-experts": (
        MOE | {"num_experts_per_tok": 5},
        "expected a whole number from 1 to 4",
    ),
    "dense-layers-beyond-the-model": (
        MOE | {"mlp_only_layers": [9]},
        "expected a list of layers below 4",
    ),
}

LATENT = CONFIG | {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "head_dim": None, "num_key_value_heads": 4,
    "tie_word_embeddings": False, "q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 256, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 2.827, "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
}  # fmt: skip


def latent(**changes: Any) -> dict[str, Any]:
    return LATENT | changes


def yarn(**changes: Any) -> dict[str, Any]:
    return latent(rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0} | changes)


def vision(**changes: Any) -> dict[str, Any]:
    top = {"architectures": ["KimiVLForConditionalGeneration"], "model_type": "kimi_vl", "text_config": LATENT}
    return top | changes


CONFIGS |= {
    "latent-gate": (latent(scoring_func="softmax"), "scoring_func: expected 'sigmoid', found softmax"),
    "latent-choice": (latent(topk_method="greedy"), "topk_method: expected 'noaux_tc', found greedy"),
    "latent-experts-in-some-layers": (latent(moe_layer_freq=2), "moe_layer_freq: expected 1, found 2"),
    "latent-activation": (latent(hidden_act="gelu"), "hidden_act: expected silu, found gelu"),
    "latent-grouped-keys": (latent(num_key_value_heads=2), "num_key_value_heads: expected 4, found 2"),
    "latent-no-kv-lora": (latent(kv_lora_rank=None), "kv_lora_rank: expected a whole number from 1 to"),
    "latent-dense-beyond": (
        latent(first_k_dense_replace=9), "first_k_dense_replace: expected a whole number from 0 to 4, found 9",
    ),
    "latent-all-dense": (latent(first_k_dense_replace=4), "first_k_dense_replace: expected fewer than 4 layers"),
    "latent-odd-rope": (latent(qk_rope_head_dim=31), "expected an even number of rotated dimensions, found 31"),
    "latent-halves": (
        latent(rope_interleave=False), "rope_interleave: expected true, as llama.cpp's deepseek2 computes, found false",
    ),
    "latent-unequal-groups": (
        latent(n_group=3, topk_group=1), "n_group: expected equal groups of at least two among 8 experts, found 3",
    ),
    "latent-single-groups": (
        latent(n_group=8, topk_group=4), "n_group: expected equal groups of at least two among 8 experts, found 8",
    ),
    "latent-few-groups": (
        latent(n_group=4, topk_group=1, num_experts_per_tok=3), "topk_group: expected groups that hold 3 experts",
    ),
    "latent-no-shared-expert": (
        latent(n_shared_experts=0), "n_shared_experts: expected at least 1, as llama.cpp's deepseek2 has, found 0",
    ),
    "latent-no-q-lora": (
        latent(q_lora_rank=None),
        "q_lora_rank: expected a number, as llama.cpp's deepseek2 needs except at 26 or 27 layers, found none",
    ),
    "latent-linear": (
        latent(rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling: expected none or yarn, as llama.cpp's deepseek2 computes, found linear",
    ),
    "latent-one-mscale": (
        yarn(mscale=None), "mscale_all_dim: expected mscale and mscale_all_dim without attention_factor, found 1.0",
    ),
    "latent-no-mscale": (
        yarn(mscale=None, mscale_all_dim=None), "mscale and mscale_all_dim: expected two equal numbers",
    ),
    "latent-unequal-mscales": (yarn(mscale=0.5), "mscale and mscale_all_dim: expected two equal numbers"),
    "latent-mscale-and-factor": (
        yarn(attention_factor=1.0), "mscale: expected mscale and mscale_all_dim without attention_factor, found 1.0",
    ),
    "vision-other-text": (
        vision(text_config=LATENT | {"model_type": "llama"}),
        "text_config: model_type: expected deepseek_v3 or kimi_k2, found llama",
    ),
    "vision-no-text": (vision(text_config=None), "model_type: expected deepseek_v3 or kimi_k2, found None"),
    "vision-tied-outside": (vision(tie_word_embeddings=True), "tie_word_embeddings: expected False, found True"),
}  # fmt: skip
VL = {
    "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
    "text_config": CONFIG | {"model_type": "qwen3_vl_text"}, "vision_config": {"deepstack_visual_indexes": [1, 2, 3]},
}  # fmt: skip
GLM = LATENT | {
    "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "num_key_value_heads": 2, "head_dim": 128,
    "topk_method": None,
}  # fmt: skip
FLASH = LATENT | {"architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite"}
MINIMAX = CONFIG | {
    "architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "num_local_experts": 4,
    "num_experts_per_tok": 2, "rotary_dim": 64, "tie_word_embeddings": False,
}  # fmt: skip


def sections(numbers: object) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": numbers}
    return VL | {"text_config": VL["text_config"] | {"rope_parameters": rope}}


def deepstack(found: object) -> dict[str, Any]:
    return VL | {"vision_config": {"deepstack_visual_indexes": found}}


CONFIGS |= {
    "pictures-sections-of-another-head": (sections([12, 10, 10]), "[12, 10, 10] are not the 64 rotated pairs"),
    "pictures-four-sections": (sections([24, 20, 10, 10]), "mrope_section: three numbers of pairs, found"),
    "pictures-sections-as-text": (sections("24"), "mrope_section: three numbers of pairs, found 24"),
    "pictures-in-more-layers": (deepstack([1, 2, 3, 4, 5]), "expected at most 4 layers, found 5"),
    "pictures-in-no-list": (deepstack("all"), "deepstack_visual_indexes: expected a list of layers, found all"),
    "pictures-no-object": (VL | {"vision_config": [1]}, "vision_config: expected an object, found [1]"),
    "glm-no-shared-expert": (
        GLM | {"n_shared_experts": 0}, "n_shared_experts: expected at least 1, as llama.cpp's glm4moe has, found 0",
    ),
    "glm-all-dense": (GLM | {"first_k_dense_replace": 4}, "first_k_dense_replace: expected fewer than 4 layers"),
    "glm-norms-as-text": (GLM | {"use_qk_norm": "yes"}, "use_qk_norm: expected true or false, found yes"),
    "flash-dense-in-between": (
        FLASH | {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"]},
        "mlp_layer_types: expected 4 layers, dense ones first, then sparse, found",
    ),
    "flash-few-layer-types": (FLASH | {"mlp_layer_types": ["dense"]}, "mlp_layer_types: expected 4 layers, "),
    "flash-two-counts-of-dense": (
        FLASH | {"mlp_layer_types": ["dense"] * 2 + ["sparse"] * 2}, "first_k_dense_replace: expected 2, found 1",
    ),
    "flash-three-dense": (FLASH | {"first_k_dense_replace": 3}, "first_k_dense_replace: expected 1, found 3"),
    "minimax-norm-by-head": (
        MINIMAX | {"qk_norm_type": "per_head"}, "qk_norm_type: expected 'per_layer', found per_head",
    ),
    "minimax-no-norm": (MINIMAX | {"use_qk_norm": False}, "use_qk_norm: expected True, found False"),
    "minimax-softmax": (MINIMAX | {"scoring_func": "softmax"}, "scoring_func: expected 'sigmoid', found softmax"),
    "minimax-shared-expert": (
        MINIMAX | {"shared_intermediate_size": 64}, "shared_intermediate_size: expected 0, found 64",
    ),
    "minimax-linear-layers": (
        MINIMAX | {"attn_type_list": [1, 0, 1, 1]}, "attn_type_list: expected 1, full attention, in every layer",
    ),
    "minimax-rotates-more-than-a-head": (
        MINIMAX | {"rotary_dim": 256}, "rotary_dim: expected a whole number from 1 to 128, found 256",
    ),
    "minimax-two-rotations": (
        MINIMAX | {"partial_rotary_factor": 0.25}, "partial_rotary_factor: expected 0.5, found 0.25",
    ),
    "minimax-tied": (
        MINIMAX | {"tie_word_embeddings": True}, "tie_word_embeddings: expected false, since llama.cpp's minimax-m2",
    ),
}  # fmt: skip
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def quantised(**settings: Any) -> dict[str, Any]:
    return CONFIG | {"quantization_config": settings}


def packed(weights: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": WEIGHTS | (weights or {})}
    packing = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}}
    return quantised(**packing | settings)


CONFIGS |= {
    "quantisation-is-text": (CONFIG | {"quantization_config": "fp8"}, "quantization_config: expected an object"),
    "nested-quantisation-differs": (
        quantised(**FP8) | {"text_config": {"quantization_config": GPTQ}},
        "text_config: quantization_config: expected the same as quantization_config at the top, found another",
    ),
    "fp8-unknown-key": (quantised(**FP8, rotation="hadamard"), "expected only quant_method, fmt,"),
    "fp8-e5m2": (quantised(**FP8 | {"fmt": "e5m2"}), "fmt: expected 'e4m3' or 'float8_e4m3fn', found e5m2"),
    "fp8-block-of-one": (
        quantised(**FP8 | {"weight_block_size": [128]}),
        "weight_block_size: expected rows and columns of a block, found [128]",
    ),
    "fp8-list-of-numbers": (
        quantised(**FP8, modules_to_not_convert=[3]),
        "modules_to_not_convert: expected a list of names, found [3]",
    ),
    "gptq-3-bits": (quantised(**GPTQ | {"bits": 3}), "bits: expected 4, found 3"),
    "gptq-no-group": (quantised(**GPTQ | {"group_size": 0}), "group_size: expected values in a group, or -1, found 0"),
    "gptq-marlin": (
        quantised(**GPTQ, checkpoint_format="marlin"),
        "checkpoint_format: expected gptq or gptq_v2, found marlin",
    ),
    "gptq-other-bits-for-some": (
        quantised(**GPTQ, dynamic={"+:.*down.*": {"bits": 8}}),
        "dynamic: expected the same settings for all modules, found +:.*down.*: {'bits': 8}",
    ),
    "gptq-endless-pattern": (
        quantised(**GPTQ, dynamic={"-:(?=a+)+$": {}}),
        "cannot be run by RE2",
    ),
    "awq-gemv": (
        quantised(quant_method="awq", bits=4, group_size=128, version="gemv"),
        "version: expected gemm, found gemv",
    ),
    "packed-without-groups": (packed(config_groups={}), "config_groups: expected groups of modules, found none"),
    "packed-8-bits": (packed({"num_bits": 8}), "weights: expected 4-bit integers, found 8-bit int"),
    "packed-by-tensor": (
        packed({"strategy": "tensor", "group_size": None}),
        "strategy: expected group with a group_size, or channel, found tensor with group_size -1",
    ),
    "packed-moved-columns": (packed({"actorder": "group"}), "actorder: expected 'weight' or 'static' or False"),
    "packed-rotated": (
        packed(transform_config={"config_groups": {"R1": {"type": "hadamard"}}}),
        "transform_config: config_groups: expected",
    ),
    "packed-sparse": (packed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config: format: expected"),
    "packed-unknown-format": (packed(format="marlin-24"), "format: expected one of awq, fp8,"),
    "packed-bad-pattern": (packed(ignore=["re:("]), "cannot be run by RE2 (missing ): ()"),
}
