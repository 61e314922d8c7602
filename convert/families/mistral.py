"""Mistral: the Llama shape, with sliding windows in its first releases, which are refused."""

from dataclasses import replace

from . import llama

FAMILY = replace(
    llama.FAMILY,
    architectures=("MistralForCausalLM",),
    model_types=("mistral",),
    defaults={
        **llama.FAMILY.defaults, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,
    },
    genai="mistral",
)  # fmt: skip
