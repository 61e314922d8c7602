"""The small files of an ONNX folder: tokenizer, template, and the configuration of onnxruntime-genai."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sampan.chat_template import CONFIG, DEFAULT, SPECIAL_TOKENS, read_templates
from sampan.chat_template import FILE as TEMPLATE
from sampan.checkpoint import Checkpoint
from sampan.errors import wrong
from sampan.files import read_bytes, read_json_if_there, there
from sampan.generation import ENDS, FILE, NAMES, Generation, end_ids

from ...architecture import MLA, Architecture, Recurrent
from ...family import Family
from ...tokenizer import Tokenizer, read_tokenizer_json

COPIED = ("tokenizer.json", CONFIG, TEMPLATE, FILE, SPECIAL_TOKENS)


def companions(
    checkpoint: Checkpoint, family: Family, arch: Architecture, context: int, tokenizer: Tokenizer, g: Generation
) -> dict[str, bytes]:
    """Name → bytes of every file besides the graph and its data."""
    files = words(checkpoint.folder, arch.vocab, g)
    return files | {"genai_config.json": as_json(_genai(checkpoint, family, arch, tokenizer, g, context))}


def words(folder: Path, vocab: int, g: Generation) -> dict[str, bytes]:
    """Name → bytes of the tokenizer, in the form of tokenizer.json, and of the small files around it."""
    files = texts(folder, vocab, g)
    _, completed = read_tokenizer_json(folder, vocab)
    if completed != read_json_if_there(folder / "tokenizer.json"):
        files["tokenizer.json"] = json.dumps(completed, ensure_ascii=False).encode()
    return files


def texts(folder: Path, vocab: int, g: Generation) -> dict[str, bytes]:
    """Name → bytes of a checkpoint's own small files; several templates lie in tokenizer_config.json, for one reader
    of one place, and generation_config.json has every end.
    """
    files = {n: read_bytes(folder / n) for n in COPIED if there(folder / n)}
    templates, config = read_templates(folder), read_json_if_there(folder / CONFIG)
    if templates and templates.keys() != {DEFAULT}:
        files.pop(TEMPLATE, None)  # it would hide the others
        named = [{"name": n, "template": t} for n, t in templates.items()]
        files[CONFIG] = as_json(config | {"chat_template": named})
    elif templates and TEMPLATE not in files and not config.get("chat_template"):
        files[TEMPLATE] = templates[DEFAULT].encode()
    generation = read_json_if_there(folder / FILE)
    if set(end_ids(generation.get(ENDS), vocab, str(folder / FILE))) != set(g.ends):
        files[FILE] = as_json((generation or _settings(g)) | {ENDS: list(g.ends)})
    return files


def as_json(value: Any) -> bytes:
    """The bytes of a small file."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def _settings(g: Generation) -> dict[str, Any]:
    """Sampling as transformers names it."""
    said: dict[str, Any] = {name: g.sampling[key] for name, key in NAMES.items() if key in g.sampling}
    if not said:
        return {}
    return {"do_sample": said["temperature"] > 0} | {k: v for k, v in said.items() if v or k != "temperature"}


def search(g: Generation, context: int, *, shared: bool) -> dict[str, Any]:
    """The section of genai_config.json that says how tokens are chosen. `shared`: the cache is one buffer."""
    found: dict[str, Any] = {
        "max_length": context,
        "do_sample": g.sampling.get("temp", 0) > 0,
        "past_present_share_buffer": shared,
    }
    for name, key in NAMES.items():
        if name != "min_p" and key in g.sampling and (found["do_sample"] or key == "penalty_repeat"):
            found[name] = g.sampling[key]
    if found.get("top_p") == 0:  # one token is left, which it says otherwise
        del found["top_p"]
        found["top_k"] = 1
    return found


def _genai(
    checkpoint: Checkpoint, family: Family, arch: Architecture, tokenizer: Tokenizer, g: Generation, context: int
) -> dict[str, Any]:
    """genai_config.json (https://onnxruntime.ai/docs/genai/reference/config.html)."""
    ends = list(g.ends)
    if len(arch.attentions) != 1:
        found = f"{len(arch.attentions)} kinds of attention"
        raise wrong(checkpoint.folder / "config.json", "one kind of attention, as genai_config.json describes", found)
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
    if any(isinstance(b.attention, Recurrent) for b in arch.blocks):
        for side, time in (("inputs", "past"), ("outputs", "present")):
            model["decoder"][side] |= {f"{time}_{kind}_names": f"{time}_{kind}.%d" for kind in ("conv", "recurrent")}
    if "bos" in tokenizer.special:
        model["bos_token_id"] = tokenizer.special["bos"]
    return {"model": model, "search": search(g, context, shared=True)}
