"""The Llama shape with a byte-level tokenizer: Llama 3, 3.1, 3.2, 3.3 and models that took it over."""

from dataclasses import replace

from ..family import Source
from . import qwen2

_A = "model.layers.{i}.self_attn."

FAMILY = replace(
    qwen2.FAMILY,
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    qkv_bias=False,
    interleaved=True,
    only={"mlp_bias": (False,)},
    sources={
        **qwen2.FAMILY.sources,
        "blk.{i}.attn_q.weight": (Source(_A + "q_proj.weight", halves=True),),
        "blk.{i}.attn_k.weight": (Source(_A + "k_proj.weight", halves=True),),
    },
)
