"""Untrained tiny models of every family, written through transformers, from one table of configs.

Weights come from numpy's PCG64 by tensor name, so the same files arise wherever they are built; the
tokenizer is the trained fixture's.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-qwen3"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md")
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
}  # fmt: skip


def build(name: str, folder: Path) -> Path:
    """Write the model called `name` as a checkpoint into `folder`."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    tiny = MODELS[name]
    config = getattr(transformers, tiny.config)(**tiny.arguments)
    config.dtype = tiny.dtype
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, tiny.dtype))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(values(key, tuple(parameter.shape))))
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(FIXTURE / file, folder)
    return folder


def values(key: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """float32 values for a tensor: norms near one, small biases, matrices that keep the scale of their input."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if key.endswith("norm.weight"):
        return 1 + 0.1 * noise
    if key.endswith("bias"):
        return 0.1 * noise
    return noise * np.float32(shape[-1] ** -0.5)


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a value of None removes the key."""
    data = json.loads(path.read_text())
    for key, value in changes.items():
        data.pop(key, None)
        if value is not None:
            data[key] = value
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False))
