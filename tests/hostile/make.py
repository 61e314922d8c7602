#!/usr/bin/env python3
"""Write the hostile files beside this script: each is small, each must be refused with the text in expected.json.

python tests/hostile/make.py
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
T = "model.norm.weight"


def safetensors(header: object, data: int = 8, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + b"\0" * data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected a safetensors file of at least 8 bytes, found 0 bytes; is it truncated?"),
    "header-longer-than-file": (
        safetensors({}, length=1 << 40),
        "expected a header length of at most 10 bytes, found 1099511627776",
    ),
    "header-length-all-ones": (safetensors({}, length=2**64 - 1), "found 18446744073709551615"),
    "not-json": (safetensors(b"{not json}", 0), "expected a JSON header, found Expecting property name"),
    "nested-too-deep": (safetensors(b"[" * 20000, 0), "expected a JSON header, found maximum recursion depth"),
    "not-utf8": (safetensors(b"\xff\xfe\x00\x01", 0), "expected a JSON header"),
    "not-an-object": (safetensors([1]), "expected a JSON object as header, found list"),
    "name-twice": (
        safetensors(f'{{"{T}": {json.dumps(entry())}, "{T}": {json.dumps(entry())}}}'.encode()),
        f"expected each name once in the header, found {T} twice",
    ),
    "missing-fields": (safetensors({T: {"dtype": "F32"}}), "expected dtype, shape and data_offsets"),
    "unknown-dtype": (safetensors({T: entry("F6")}), "expected a dtype among BOOL, U8"),
    "negative-shape": (safetensors({T: entry(shape=[-2])}), "expected a shape of whole numbers, found [-2]"),
    "fractional-shape": (safetensors({T: entry(shape=[2.0])}), "expected a shape of whole numbers, found [2.0]"),
    "absurd-shape": (safetensors({T: entry(shape=[2**62, 2**62])}), "found 8 in data_offsets"),
    "backward-offsets": (
        safetensors({T: entry(offsets=[8, 0])}),
        "expected data_offsets [start, end] with start",
    ),
    "three-offsets": (safetensors({T: entry(offsets=[0, 4, 8])}), "expected data_offsets [start, end]"),
    "size-differs": (safetensors({T: entry(shape=[3])}), "expected 12 bytes for F32 [3], found 8 in data_offsets"),
    "overlap": (
        safetensors({T: entry(), "other": entry(offsets=[4, 12])}, 12),
        "other: expected data at byte 159, found 155: it overlaps the tensor before it",
    ),
    "hole": (
        safetensors({T: entry(), "other": entry(offsets=[16, 24])}, 24),
        "it leaves a hole before it",
    ),
    "beyond-the-end": (safetensors({T: entry(offsets=[0, 8])}, 4), "found 89; the file is truncated"),
    "trailing-bytes": (safetensors({T: entry()}, 40), "bytes that belong to no tensor"),
}

GOOD_INDEX = {"metadata": {}, "weight_map": {T: "model-00001-of-00001.safetensors"}}


def index(shard: object) -> dict[str, Any]:
    return {"weight_map": {T: shard}}


INDEX: dict[str, tuple[object, str]] = {
    "parent-folder": (
        index("../secret.safetensors"),
        "the plain name of a .safetensors file, found ../secret",
    ),
    "absolute-path": (index("/etc/model.safetensors"), "expected the plain name of a .safetensors file, found /etc/"),
    "backslash": (index("..\\model.safetensors"), "expected the plain name of a .safetensors file"),
    "hidden-file": (index(".model.safetensors"), "expected the plain name of a .safetensors file"),
    "pickle": (index("pytorch_model.bin"), "expected the plain name of a .safetensors file, found pytorch_model.bin"),
    "no-string": (index(7), "expected the plain name of a .safetensors file, found 7"),
    "no-weight-map": ({"metadata": {}}, "weight_map: expected tensor names and their shards, found None"),
    "empty-weight-map": ({"weight_map": {}}, "weight_map: expected tensor names and their shards, found {}"),
    "a-list": ([], "expected a JSON object, found list"),
    "missing-shard": (index("model-00009-of-00009.safetensors"), "expected the shard model-00009-of-00009.safetensors"),
}

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

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-architecture": (
        CONFIG | {"architectures": ["MambaForCausalLM"]},
        "architectures: expected one of DeepseekV3ForCausalLM, KimiK25ForConditionalGeneration, "
        "KimiVLForConditionalGeneration, LlamaForCausalLM, Qwen2ForCausalLM, Qwen2MoeForCausalLM, Qwen3ForCausalLM, "
        "Qwen3MoeForCausalLM, found MambaForCausalLM",
    ),
    "no-architecture": (CONFIG | {"architectures": None}, "architectures: expected one of"),
    "other-model-type": (
        CONFIG | {"model_type": "qwen2"},
        "expected qwen3 with Qwen3ForCausalLM, found qwen2",
    ),
    "unknown-activation": (CONFIG | {"hidden_act": "relu2"}, "hidden_act: expected silu, found relu2"),
    "unknown-quantisation": (
        CONFIG | {"quantization_config": {"quant_method": "bitsandbytes"}},
        "quantization_config: quant_method: expected one of awq, fp8, compressed-tensors/float-quantized, "
        "compressed-tensors/naive-quantized, gptq, compressed-tensors/mxfp4-pack-quantized, "
        "compressed-tensors/pack-quantized, found bitsandbytes",
    ),
    "unknown-rope": (
        CONFIG | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_scaling: rope_type: expected default, linear or yarn, found dynamic",
    ),
    "unknown-rope-new-style": (
        CONFIG | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        "rope_parameters: rope_type: expected default, linear or yarn, found llama3",
    ),
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
        latent(n_shared_experts=None), "n_shared_experts: expected at least 1, as llama.cpp's deepseek2 has, found 0",
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
    "fp8-e5m2": (quantised(**FP8 | {"fmt": "e5m2"}), "fmt: expected 'e4m3', found e5m2"),
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
        quantised(**GPTQ, dynamic={"-:(a+)+$": {}}),
        "expected a pattern of at most 400 characters without repeated groups, found (a+)+$",
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
    "packed-bad-pattern": (packed(ignore=["re:("]), "ignore: expected a regular expression, found (: missing )"),
}

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer(**changes: Any) -> dict[str, Any]:
    return {
        "added_tokens": [{"id": 3, "content": "<|end|>", "special": True}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    } | changes


def split(**changes: Any) -> dict[str, Any]:
    steps = tokenizer()["pre_tokenizer"]["pretokenizers"]
    return tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [steps[0] | changes, steps[1]]})


def model(**changes: Any) -> dict[str, Any]:
    return tokenizer(model=tokenizer()["model"] | changes)


def added(**changes: Any) -> dict[str, Any]:
    return tokenizer(added_tokens=[{"id": 3, "content": "<|end|>", "special": True} | changes])


TOKENIZERS: dict[str, tuple[object, str]] = {
    "a-list": ([], "expected a JSON object, found list"),
    "unigram": (model(type="Unigram"), "model.type: expected BPE, found Unigram"),
    "byte-fallback": (model(byte_fallback=True), "model.byte_fallback: expected False, found True"),
    "no-merges": (model(merges=None), "model.merges: expected a list of merges, found None"),
    "merge-of-three": (
        model(merges=["a b c"]),
        "two tokens for each merge, found ['a', 'b', 'c']",
    ),
    "merge-with-space": (
        model(merges=[["a ", "b"]]),
        "two byte-level tokens, which hold no space, found a  b",
    ),
    "id-twice": (model(vocab={"a": 0, "b": 0}), "b: expected an id of its own, found 0, as a"),
    "id-beyond-vocabulary": (model(vocab={"a": 0, "b": 9999}), "b: expected an id below vocab_size 8, found 9999"),
    "negative-id": (model(vocab={"a": -1}), "a: expected an id below vocab_size 8, found -1"),
    "other-regex": (split(pattern={"Regex": r"\w+"}), r"expected the split regex of qwen2, kimi-k2, found \w+"),
    "string-pattern": (split(pattern={"String": " "}), "expected the split regex of qwen2, kimi-k2, found None"),
    "removed-pieces": (split(behavior="Removed"), "expected Split with behavior Isolated, not inverted"),
    "no-pre-tokenizer": (tokenizer(pre_tokenizer=None), "pre_tokenizer: expected Split, then ByteLevel, found None"),
    "lower-case": (tokenizer(normalizer={"type": "Lowercase"}), "normalizer: expected NFC or none"),
    "other-decoder": (tokenizer(decoder={"type": "WordPiece"}), "decoder: expected ByteLevel"),
    "added-lstrip": (added(lstrip=True), "added token <|end|>: expected lstrip false, as llama.cpp cannot do it"),
    "added-not-nfc": (added(content="e\u0301"), "expected text in NFC"),
    "added-id-taken": (added(id=2), "added token <|end|>: expected an id of its own, found 2, as ab"),
    "added-beyond-vocabulary": (added(id=8), "added token <|end|>: expected an id below vocab_size 8, found 8"),
    "added-without-content": (added(content=7), "added_tokens: expected an id of its own and a content"),
}


def gguf(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


GGUF: dict[str, tuple[bytes, str]] = {
    "wrong-magic": (b"GGML" + b"\0" * 20, "expected a GGUF file, found the first bytes b'GGML'"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "GGUF version 2 or 3, little-endian, found 50331648",
    ),
    "cut-short": (b"GGUF\x03\0", "expected 4 bytes for a number, found 2 left in the file; it is truncated"),
    "absurd-tensor-count": (gguf(tensors=2**60), "tensors in the file, found 1152921504606846976"),
    "absurd-key-count": (gguf(keys=2**60), "metadata keys in the file, found 1152921504606846976"),
    "absurd-string": (gguf(keys=1, rest=text(b"general.name", 2**50) + b"\0" * 8), "bytes for a metadata key, found"),
    "absurd-array": (
        gguf(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**55)),
        "values in a in the file, found 36028797018963968",
    ),
    "array-of-arrays": (
        gguf(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1)),
        "expected an array of plain values, found an array of arrays",
    ),
    "unknown-value-type": (
        gguf(keys=1, rest=text(b"a") + struct.pack("<I", 77)),
        "a value type below 13, found 77",
    ),
    "key-twice": (
        gguf(keys=2, rest=2 * (text(b"a") + struct.pack("<IB", 7, 1))),
        "a: expected each metadata key once, found it twice",
    ),
    "alignment-zero": (
        gguf(keys=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)),
        "general.alignment: expected a power of two, found 0",
    ),
    "five-dimensions": (
        gguf(tensors=1, rest=text(b"t") + struct.pack("<I5QIQ", 5, 1, 1, 1, 1, 1, 0, 0)),
        "t: expected at most 4 dimensions, found 5",
    ),
    "absurd-dimensions": (
        gguf(tensors=1, rest=text(b"t") + struct.pack("<I2QIQ", 2, 2**40, 2**40, 0, 0)),
        "t: expected fewer than 2⁶³ values",
    ),
    "tensor-twice": (
        gguf(tensors=2, rest=2 * (text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 0))),
        "expected each tensor name once, found a name twice",
    ),
}


def main() -> None:
    expected: dict[str, str] = {}

    def write(folder: str, name: str, data: bytes, line: str) -> None:
        path = HERE / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        expected[f"{folder}/{name}"] = line

    for name, (raw, line) in SAFETENSORS.items():
        write("safetensors", f"{name}.safetensors", raw, line)
    for name, (raw, line) in GGUF.items():
        write("gguf", f"{name}.gguf", raw, line)
    for folder, cases in (("index", INDEX), ("config", CONFIGS), ("tokenizer", TOKENIZERS)):
        for name, (value, line) in cases.items():
            write(folder, f"{name}.json", json.dumps(value, ensure_ascii=False, indent=1).encode(), line)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
