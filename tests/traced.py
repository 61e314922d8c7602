"""A checkpoint traced by torch into the layout of Optimum and transformers.js: a graph that is not ours."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def trace(source: Path, out: Path, name: str = "model") -> Path:
    """`out/onnx/NAME.onnx` with a cache that grows, the small files beside `onnx`; returns `out`."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    config = model.config
    layers = range(config.num_hidden_layers)

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, positions: Any, *past: Any) -> Any:
            cache = DynamicCache(config=config)
            for n in layers:
                cache.update(past[2 * n], past[2 * n + 1], n)
            later = torch.arange(mask.shape[1])[None] > positions.reshape(-1, 1)
            added = later.to(torch.float32)[None, None] * torch.finfo(torch.float32).min
            found = self.model(
                input_ids=ids, attention_mask=added, position_ids=positions, past_key_values=cache, use_cache=True
            )
            return found.logits, *(t for layer in found.past_key_values.layers for t in (layer.keys, layer.values))

    names = [f"past_key_values.{n}.{kind}" for n in layers for kind in ("key", "value")]
    present = [n.replace("past_key_values", "present") for n in names]
    heads, size = config.num_key_value_heads, config.head_dim
    example = (torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64), torch.arange(5, 8)[None])
    step, inputs = {0: "batch_size", 1: "sequence_length"}, ["input_ids", "attention_mask", "position_ids"]
    axes = dict.fromkeys(inputs, step) | {"attention_mask": {0: "batch_size", 1: "total_sequence_length"}}
    axes |= {n: {0: "batch_size", 2: "past_sequence_length"} for n in names}
    axes |= {n: {0: "batch_size", 2: "total_sequence_length"} for n in present}
    (out / "onnx").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Decoder(), (*example, *(torch.zeros(1, heads, 5, size) for _ in names)), str(out / "onnx" / f"{name}.onnx"),
            input_names=[*inputs, *names], output_names=["logits", *present], dynamic_axes=axes, dynamo=False,
            opset_version=17,
        )  # fmt: skip
    for file in SMALL:
        shutil.copy(source / file, out)
    return out
