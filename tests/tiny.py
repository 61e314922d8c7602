"""Untrained tiny models of every family, written through transformers, from one table of configs.

Weights come from whole numbers by tensor name, so the same values arise on every processor and with every
release of numpy; the tokenizer is the trained fixture's.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampan.checkpoint import SINGLE

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-qwen3"
KIMI = FIXTURE.with_name("tiny-kimi")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md")
LLAMA3 = {  # one wave is kept, one divided, the others between
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
QUARTER = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@dataclass(frozen=True)
class Tiny:
    """A transformers config class, its arguments, and the dtype of the checkpoint."""

    config: str
    arguments: dict[str, Any]
    dtype: str = "bfloat16"


def _qwen(config: str, dtype: str = "bfloat16", **changes: Any) -> Tiny:
    base = {
        "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 2035,
    }  # fmt: skip
    return Tiny(config, base | changes, dtype)


def _deepseek(dtype: str = "bfloat16", config: str = "DeepseekV3Config", **changes: Any) -> Tiny:
    base = {
        "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
        "q_lora_rank": 256, "kv_lora_rank": 256, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 256,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "bos_token_id": None, "eos_token_id": 2035, "num_mtp_layers": 0,
    }  # fmt: skip
    return Tiny(config, base | changes, dtype)


def _hybrid(config: str, dtype: str = "bfloat16", **changes: Any) -> Tiny:
    """Four layers, the last of which attends; heads of 64, a quarter of each rotated."""
    base = {
        "head_dim": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32,
        "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
        "rope_parameters": QUARTER | {"mrope_section": [3, 3, 2]},
    }  # fmt: skip
    return _qwen(config, dtype, **(base | changes))


def _kimi_linear(dtype: str = "bfloat16", **changes: Any) -> Tiny:
    """The layers of FULL attend without rotation, the others have a state; a first dense layer, then experts."""
    base = {
        "moe_intermediate_size": 256, "num_local_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "num_key_value_heads": 4, "linear_num_heads": 4, "linear_head_dim": 64, "linear_conv_kernel_dim": 4,
        "num_hidden_layers": 5, "layer_types": _kinds(5, 4, 5), "pad_token_id": None,
    }  # fmt: skip
    return _qwen("KimiLinearConfig", dtype, **(base | changes))


def _kinds(layers: int, *full: int) -> list[str]:
    """layer_types where the layers of `full`, counted from one, attend."""
    return ["full_attention" if i + 1 in full else "linear_attention" for i in range(layers)]


def _vision(config: str, dtype: str = "bfloat16", text: dict[str, Any] | None = None, **changes: Any) -> Tiny:
    """A text model of three positions inside one with a vision tower of two thin layers."""
    base = _qwen("", **({"head_dim": 64, "rope_parameters": SECTIONS} | (text or {}))).arguments
    tower = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 256,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    tied = base.pop("tie_word_embeddings")
    arguments = {"text_config": base, "vision_config": tower, "tie_word_embeddings": tied}
    return Tiny(config, arguments | changes, dtype)


def _glm_moe(dtype: str = "bfloat16", **changes: Any) -> Tiny:
    """One dense layer, half of each head rotated."""
    base = {
        "head_dim": 64, "attention_bias": True, "pad_token_id": None, "rms_norm_eps": 1e-5, "n_routed_experts": 6,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 256, "first_k_dense_replace": 1,
        "num_mtp_layers": 0, "routed_scaling_factor": 1.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    }  # fmt: skip
    return _qwen("Glm4MoeConfig", dtype, **(base | changes))


def _minimax(dtype: str = "bfloat16", **changes: Any) -> Tiny:
    """The keys of the makers' config stand beside those of transformers."""
    base = {
        "head_dim": 64, "pad_token_id": None, "intermediate_size": 256, "num_local_experts": 6,
        "num_experts_per_tok": 2, "rotary_dim": 32, "scoring_func": "sigmoid", "use_qk_norm": True,
        "qk_norm_type": "per_layer",
    }  # fmt: skip
    return _qwen("MiniMaxM2Config", dtype, **(base | changes))


_MTP = {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
_MIX = {
    "moe_intermediate_size": 256, "num_experts_per_tok": 2, "num_experts": 6, "shared_expert_intermediate_size": 256,
}  # fmt: skip
_MOE = {"moe_intermediate_size": 256, "num_experts_per_tok": 2, "num_experts": 6}
_SMALL = {"hidden_size": 64, "intermediate_size": 64}

MODELS: dict[str, Tiny] = {
    "qwen2": _qwen("Qwen2Config", tie_word_embeddings=True),
    "qwen2-f32-gqa4": _qwen("Qwen2Config", "float32", num_attention_heads=8),
    "qwen2-f16-16-layers": _qwen("Qwen2Config", "float16", num_hidden_layers=16, **_SMALL),
    "qwen2-80-layers": _qwen("Qwen2Config", num_hidden_layers=80, **_SMALL, num_key_value_heads=1),
    "qwen2-linear": _qwen(
        "Qwen2Config", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "qwen3": _qwen("Qwen3Config", head_dim=128, tie_word_embeddings=True),
    "qwen3-odd-widths": _qwen(
        "Qwen3Config", hidden_size=96, head_dim=48, intermediate_size=176, num_attention_heads=4
    ),
    # 160 and 288 are multiples of 32 and not of 128; for checkpoints with blocks of either
    "qwen3-odd-blocks": _qwen(
        "Qwen3Config", hidden_size=160, head_dim=80, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=288, num_hidden_layers=2,
    ),
    "qwen3-yarn": _qwen("Qwen3Config", head_dim=64, rope_parameters=YARN),
    "qwen3-yarn-attention": _qwen(
        "Qwen3Config",
        "float32",
        head_dim=64,
        rope_parameters=YARN | {"attention_factor": 0.8},
    ),
    "qwen2_moe": _qwen("Qwen2MoeConfig", shared_expert_intermediate_size=512, **_MOE),
    "qwen2_moe-8-experts": _qwen(
        "Qwen2MoeConfig", "float16", shared_expert_intermediate_size=256, **(_MOE | {"num_experts": 8})
    ),
    "qwen3_moe": _qwen("Qwen3MoeConfig", head_dim=128, norm_topk_prob=True, **_MOE),
    "qwen3_moe-8-experts": _qwen(
        "Qwen3MoeConfig", "float32", head_dim=64, norm_topk_prob=True, num_hidden_layers=8,
        **(_MOE | {"num_experts": 8}),
    ),
    "llama": _qwen("LlamaConfig", rope_parameters=LLAMA3),
    "llama-tied-head-dim": _qwen(
        "LlamaConfig", "float32", head_dim=48, hidden_size=96, intermediate_size=176, tie_word_embeddings=True
    ),
    "llama-80-layers": _qwen("LlamaConfig", num_hidden_layers=80, **_SMALL),
    "llama-linear": _qwen(
        "LlamaConfig", num_hidden_layers=2, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "llama-yarn": _qwen("LlamaConfig", num_hidden_layers=2, rope_parameters=YARN | {"attention_factor": 0.8}),
    "mistral": _qwen("MistralConfig", sliding_window=None, head_dim=64),
    "glm4": _qwen("Glm4Config", head_dim=64, attention_bias=True, pad_token_id=None),
    "glm4-odd-widths": _qwen(
        "Glm4Config", "float32", head_dim=96, hidden_size=96, intermediate_size=176, attention_bias=False,
        pad_token_id=None, rms_norm_eps=1.5625e-07,
    ),
    "deepseek_v3": _deepseek(),
    "deepseek_v3-8-experts-2-shared": _deepseek("float32", n_routed_experts=8, n_shared_experts=2),
    "deepseek_v3-groups": _deepseek(
        n_routed_experts=12, n_group=4, topk_group=2, num_experts_per_tok=3, norm_topk_prob=False
    ),
    "deepseek_v3-yarn": _deepseek(rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "deepseek_v3-yarn-mscale": _deepseek(rope_parameters=YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}),
    "deepseek_v3-yarn-betas": _deepseek(  # Kimi K2's
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 1.0, "beta_slow": 1.0}
    ),
    "deepseek_v3-odd-widths": _deepseek(
        hidden_size=96, intermediate_size=176, moe_intermediate_size=80, q_lora_rank=72, kv_lora_rank=112,
        qk_nope_head_dim=48, qk_rope_head_dim=16, v_head_dim=40,
    ),
    "deepseek_v3-no-q-lora": _deepseek(
        "float32", num_hidden_layers=27, q_lora_rank=None, hidden_size=64, intermediate_size=64,
        moe_intermediate_size=32, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
    ),
    "qwen3_next": _hybrid("Qwen3NextConfig", rope_parameters=QUARTER, **_MIX),
    "qwen3_5": _hybrid("Qwen3_5TextConfig"),
    "qwen3_5-equal-heads": _hybrid("Qwen3_5TextConfig", "float32", tie_word_embeddings=True, linear_num_value_heads=2),
    "qwen3_5_moe": _hybrid("Qwen3_5MoeTextConfig", linear_num_value_heads=6, **_MIX),
    "qwen3_next-mtp": _hybrid("Qwen3NextConfig", rope_parameters=QUARTER, **_MIX, **_MTP),
    "qwen3_5-mtp": _hybrid("Qwen3_5TextConfig", **_MTP),
    "qwen3_5_moe-mtp": _hybrid("Qwen3_5MoeTextConfig", linear_num_value_heads=6, **_MIX, **_MTP),
    "kimi_linear": _kimi_linear(),
    "kimi_linear-8-experts-first-attends": _kimi_linear(
        "float32", layer_types=_kinds(5, 1, 4), num_local_experts=8, n_shared_experts=2, linear_conv_kernel_dim=3,
        linear_head_dim=32, v_head_dim=32,
    ),
    "kimi_linear-groups": _kimi_linear(
        num_hidden_layers=9, layer_types=_kinds(9, 2, 5, 9), num_local_experts=12, n_group=4, topk_group=2,
        num_experts_per_tok=3, **_SMALL, moe_intermediate_size=32, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, linear_head_dim=32,
    ),
    "qwen3_vl": _vision("Qwen3VLConfig", text={"tie_word_embeddings": True}),
    "qwen3_vl-wide-heads": _vision(
        "Qwen3VLConfig", "float32", text={
            "head_dim": 128, "rope_parameters": SECTIONS | {"rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
    ),
    "qwen3_vl_moe": _vision("Qwen3VLMoeConfig", text={**_MOE, "moe_intermediate_size": 96}),
    "glm4_moe": _glm_moe(),
    "glm4_moe-norms-groups": _glm_moe(
        "float32", use_qk_norm=True, attention_bias=False, n_routed_experts=12, n_group=4, topk_group=2,
        num_experts_per_tok=3, norm_topk_prob=False, n_shared_experts=2, first_k_dense_replace=2,
    ),
    "glm4_moe_lite": _deepseek(
        config="Glm4MoeLiteConfig", pad_token_id=None, qk_nope_head_dim=96, qk_rope_head_dim=32, v_head_dim=128
    ),
    "minimax_m2": _minimax(),
    "minimax_m2-f32": _minimax("float32", num_key_value_heads=4, rotary_dim=64, num_local_experts=8),
}  # fmt: skip
PLAIN = [name for name in MODELS if "-" not in name]  # one of each architecture; the others are their variants


def build(name: str, folder: Path) -> Path:
    """Write the model called `name` as a checkpoint into `folder`: transformers says which tensors it has."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    tiny = MODELS[name]
    config = getattr(transformers, tiny.config)(**tiny.arguments)
    config.dtype = tiny.dtype
    auto_class(config).from_config(config).to(getattr(torch, tiny.dtype)).save_pretrained(folder)
    edit_json(folder / "config.json", transformers_version=None)
    stored = load_file(folder / SINGLE)
    if tiny.config == "KimiLinearConfig":
        stored = _as_the_makers(folder, stored)
    if tiny.config == "Qwen3VLMoeConfig":  # as the makers' files have them; transformers reads both
        stored = {k: v.transpose(1, 2) if ".experts." in k else v for k, v in stored.items()}
    if "mtp_num_hidden_layers" in tiny.arguments:
        stored |= _further_token(config.hidden_size, stored)
        if tiny.config == "Qwen3NextConfig":  # its makers' files do not say
            edit_json(folder / "config.json", **dict.fromkeys(_MTP))
    stored = {k: torch.from_numpy(values(k, tuple(v.shape))).to(v.dtype) for k, v in sorted(stored.items())}
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})
    for file in TOKENIZER_FILES:
        shutil.copy(FIXTURE / file, folder)
    return folder


def _as_the_makers(folder: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """Kimi-Linear's config as it is published, where transformers saves keys of its own; the dense layer's names."""
    import torch

    config = json.loads((folder / "config.json").read_text())
    kinds, ffns = config["layer_types"], config["mlp_layer_types"]
    linear = {
        "full_attn_layers": [i + 1 for i, k in enumerate(kinds) if k == "full_attention"],
        "kda_layers": [i + 1 for i, k in enumerate(kinds) if k == "linear_attention"],
        "head_dim": config["linear_head_dim"], "num_heads": config["linear_num_heads"],
        "short_conv_kernel_size": config["linear_conv_kernel_dim"],
    }  # fmt: skip
    own = (
        "layer_types",
        "mlp_layer_types",
        "linear_head_dim",
        "linear_num_heads",
        "linear_conv_kernel_dim",
        "qk_head_dim",
    )
    changes: dict[str, Any] = dict.fromkeys(own)
    edit_json(
        folder / "config.json", **changes, linear_attn_config=linear, first_k_dense_replace=ffns.count("dense"),
        head_dim=config["hidden_size"] // config["num_attention_heads"], mla_use_nope=True, moe_layer_freq=1,
        moe_router_activation_func="sigmoid", rope_theta=10000.0, num_nextn_predict_layers=0, use_grouped_topk=True,
    )  # fmt: skip
    named = {re.sub(r"block_sparse_moe\.(gate|up|down)_proj", r"mlp.\1_proj", k): v for k, v in stored.items()}
    exact = ("A_log", "dt_bias", "e_score_correction_bias")  # float32 in every checkpoint
    return {k: v.to(torch.float32) if k.endswith(exact) else v for k, v in named.items()}


def _further_token(hidden: int, stored: dict[str, Any]) -> dict[str, Any]:
    """The head that predicts a further token, under the makers' names: transformers has no class for it."""
    import torch

    layer = {k.replace("model.layers.3.", "mtp.layers.0."): v for k, v in stored.items() if ".layers.3." in k}
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    made = {f"mtp.{n}.weight": torch.empty(hidden, dtype=torch.bfloat16) for n in norms}
    return layer | made | {"mtp.fc.weight": torch.empty(hidden, 2 * hidden, dtype=torch.bfloat16)}


def auto_class(config: Any) -> Any:
    """What loads a model of text, or of text and pictures."""
    import transformers

    text = getattr(config, "vision_config", None) is None
    return transformers.AutoModelForCausalLM if text else transformers.AutoModelForImageTextToText


def made_from(name: str) -> object:
    """What decides the config of a model: its row of the table, or the fixture's own config.json."""
    return json.loads((FIXTURE / "config.json").read_text()) if name == "trained" else asdict(MODELS[name])


def values(key: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """float32 values for a tensor: norms near one, small biases, matrices that keep the scale of their input."""
    count = math.prod(shape)
    raw = np.random.PCG64(zlib.crc32(key.encode())).random_raw(count)  # the raw stream is the same in every numpy
    total = raw.astype("<u8").view("<u2").reshape(count, 4).sum(axis=1, dtype=np.int32)  # nearly a bell
    centred = (total - 2 * 65535).astype(np.float32)  # exact: below 2 ** 18
    scale = 1 / 37837  # their standard deviation, 65536 / sqrt(3)
    if key.endswith("norm.weight"):
        return (1 + centred * np.float32(0.1 * scale)).reshape(shape)
    if key.endswith("bias"):
        return (centred * np.float32(0.1 * scale)).reshape(shape)
    return (centred * np.float32(scale / math.sqrt(shape[-1]))).reshape(shape)


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a value of None removes the key."""
    data = json.loads(path.read_text())
    for key, value in changes.items():
        data.pop(key, None)
        if value is not None:
            data[key] = value
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False))
