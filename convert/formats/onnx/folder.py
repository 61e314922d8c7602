"""The small files of an ONNX folder: tokenizer, template, and the configuration of onnxruntime-genai."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sampan.checkpoint import Checkpoint
from sampan.errors import brief, wrong
from sampan.files import read_bytes, read_json_if_there, there

from ...architecture import MLA, Architecture
from ...family import Family
from ...tokenizer import Tokenizer, read_tokenizer, read_tokenizer_json
from .._sampling import read_sampling

COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
SEARCH = ("top_k", "top_p", "temperature", "repetition_penalty")


def companions(checkpoint: Checkpoint, family: Family, arch: Architecture, context: int) -> dict[str, bytes]:
    """Name → bytes of every file besides the graph and its data."""
    tokenizer = read_tokenizer(checkpoint.folder, arch.vocab)
    files = {n: read_bytes(checkpoint.folder / n) for n in COPIED if there(checkpoint.folder / n)}
    _, completed = read_tokenizer_json(checkpoint.folder, arch.vocab)
    if completed != read_json_if_there(checkpoint.folder / "tokenizer.json"):
        files["tokenizer.json"] = json.dumps(completed, ensure_ascii=False).encode()
    files["genai_config.json"] = (
        json.dumps(_genai(checkpoint, family, arch, tokenizer, context), indent=1).encode() + b"\n"
    )
    return files


def _genai(
    checkpoint: Checkpoint, family: Family, arch: Architecture, tokenizer: Tokenizer, context: int
) -> dict[str, Any]:
    """genai_config.json (https://onnxruntime.ai/docs/genai/reference/config.html)."""
    path = checkpoint.folder / "generation_config.json"
    generation = read_json_if_there(path)
    ends = _ends(generation, tokenizer, str(path))
    (attention,) = arch.attentions
    if isinstance(attention, MLA):  # expanded, see blocks/mla.py
        kv_heads, head_dim = attention.heads, attention.nope + attention.rope_dims
    else:
        kv_heads, head_dim = attention.kv_heads, attention.head_dim
    model: dict[str, Any] = {
        "type": family.genai,
        "vocab_size": arch.vocab,
        "context_length": context,
        "eos_token_id": ends,
        "pad_token_id": tokenizer.special.get("pad", ends[0]),
        "decoder": {
            "filename": "model.onnx",
            "session_options": {"provider_options": []},
            "hidden_size": arch.hidden,
            "head_size": head_dim,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": kv_heads,
            "num_hidden_layers": len(arch.blocks),
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    if "bos" in tokenizer.special:
        model["bos_token_id"] = tokenizer.special["bos"]
    search: dict[str, Any] = {
        "max_length": context,
        "do_sample": bool(generation.get("do_sample", False)),
        "past_present_share_buffer": True,
    }
    search |= search_options(checkpoint.folder)
    return {"model": model, "search": search}


def search_options(folder: Path) -> dict[str, int | float]:
    """The sampling defaults that genai_config.json has a key for."""
    found = read_sampling(folder)
    return {key: found[key] if key == "top_k" else float(found[key]) for key in SEARCH if key in found}


def _ends(generation: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """Every token that ends an answer: the tokenizer's and those of the generation config."""
    found = generation.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int and 0 <= i < len(tokenizer.tokens) for i in ids):
        raise wrong(f"{where}: eos_token_id", f"token ids below {len(tokenizer.tokens)}", brief(found))
    special = [tokenizer.special[r] for r in ("eos", "eot") if r in tokenizer.special]
    return list(dict.fromkeys([*special, *ids]))
