"""The Llama shape with a byte-level tokenizer: Llama 3, 3.1, 3.2, 3.3 and models that took it over."""

from dataclasses import replace

from ..architecture import Architecture, kv_heads
from ..config import Config
from ..family import Gguf
from ..readers import read_dense, read_gqa, uniform
from . import qwen2


def read(config: Config) -> Architecture:
    """Llama's config: no biases."""
    config.is_default("mlp_bias", False)
    return uniform(config, read_gqa(config), read_dense(config))


def is_70b(arch: Architecture) -> bool:
    """80 layers with grouped key heads; without groups it is Llama 1's 65B."""
    return len(arch.blocks) == 80 and all(kv_heads(a) != a.heads for a in arch.attentions)


FAMILY = replace(
    qwen2.FAMILY,
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    read=read,
    defaults=qwen2.DEFAULTS | {"max_position_embeddings": 2048, "num_key_value_heads": None},
    gguf=Gguf(architecture="llama", interleaved=True, llama3=True, rope_dims=True, vocab=True, wide=is_70b),
    genai="llama",
)
