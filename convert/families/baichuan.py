"""Baichuan2-7B: a Llama whose q, k and v are one matrix, and whose head has rows of length one (NormHead).

The 13B biases attention by distance instead of rotating (ALiBi) and is refused; so is a checkpoint of the first
Baichuan, whose architecture has another name (BaiChuanForCausalLM) and whose head is taken as it is.
"""

from dataclasses import replace

from sampan.errors import InputError

from ..architecture import GQA, Architecture, Block
from ..config import Config
from ..family import Gguf
from ..readers import read_layers
from ..rows import LENGTH_ONE, Cut, Source
from . import llama

_PACK = "model.layers.{i}.self_attn.W_pack.weight"
LAYERS = {"7B": 32, "13B": 40}


def read(config: Config) -> Architecture:
    """Llama's config with as many key heads as heads; what only a 13B says, or does not say, is refused."""
    if config.get("max_position_embeddings") is None or read_layers(config) == LAYERS["13B"]:
        raise InputError(
            f"{config.where}: Baichuan's 13B biases attention by distance (ALiBi), which is not written; its 7B has "
            f"max_position_embeddings and {LAYERS['7B']} layers"
        )
    config.is_default("tie_word_embeddings", False)
    config.is_default("num_key_value_heads")
    return llama.read(config)


def _part(n: int, block: Block) -> Cut:
    a = block.attention
    assert isinstance(a, GQA)  # noqa: S101 - no other attention has such a tensor
    width = a.heads * a.head_dim
    return Cut(n * width, width, 3 * width)


FAMILY = replace(
    llama.FAMILY,
    architectures=("BaichuanForCausalLM",),
    model_types=("baichuan",),
    read=read,
    sources={
        **llama.FAMILY.sources,
        "blk.{i}.attn_q.weight": (Source(_PACK, cut=lambda b: _part(0, b)),),
        "blk.{i}.attn_k.weight": (Source(_PACK, cut=lambda b: _part(1, b)),),
        "blk.{i}.attn_v.weight": (Source(_PACK, cut=lambda b: _part(2, b)),),
        "output.weight": (Source("lm_head.weight", map=LENGTH_ONE),),
    },
    defaults={k: v for k, v in llama.FAMILY.defaults.items() if k != "max_position_embeddings"},
    gguf=Gguf(architecture="baichuan", interleaved=True, derives_heads=True, rope_dims=True, layers=(LAYERS["7B"],)),
)
