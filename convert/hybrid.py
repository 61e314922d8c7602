"""Qwen's hybrids (Qwen3-Next, Qwen3.5 and later): three layers of gated delta net to one of gated attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sampan.errors import InputError, brief

from .architecture import Architecture, Attention, Block, DeltaNet, Dense, MoE, Rope
from .config import Config
from .family import DRAFT_HEAD, DRAFTS
from .readers import MOST_HEADS, assemble, read_gqa, read_layers
from .rows import MINUS_EXP, ONE_PLUS, Layout, Source, inside

_L = "model.layers.{i}."
_D = _L + "linear_attn."
DEFAULTS = {
    "head_dim": 256, "partial_rotary_factor": 0.25, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
}  # fmt: skip
POST_ATTENTION = "post_attention_norm"  # what GGUF calls the norm before the feed-forward in these models


def read_hybrid(config: Config, ffn: Dense | MoE | Sequence[Dense | MoE], *, fused_gates: bool = False) -> Architecture:
    """A layer's kind stands in layer_types, or every `full_attention_interval`-th layer attends."""
    attention = read_gqa(config, qk_norm=True, partial=True, gated=True)
    attention = replace(attention, rope=read_sections(config, attention.rope))
    config.is_default("attn_output_gate", True)
    config.is_default("output_gate_type", "swish")  # of the delta net's norm; transformers knows no other
    delta = read_delta_net(config, fused_gates=fused_gates)
    kinds: dict[str, Attention] = {"full_attention": attention, "linear_attention": delta}
    named = read_layer_kinds(config)
    each = [ffn] * len(named) if isinstance(ffn, Dense | MoE) else ffn
    unknown = next((k for k in named if k not in kinds), None)
    if unknown is not None:
        raise InputError(f"{config.at('layer_types')}: {brief(unknown)} is no kind of layer that is known here")
    arch = assemble(
        config, [Block(kinds[k], f, ffn_norm=POST_ATTENTION) for k, f in zip(named, each, strict=True)]
    )  # fmt: skip
    drafts = config.natural(DRAFTS, default=1, least=0)  # Qwen3-Next's configs do not say
    if drafts != 1 or config.flag("mtp_use_dedicated_embeddings", False):  # left out: no graph reads such a head
        return arch
    return replace(arch, drafts=(Block(attention, each[-1], ffn_norm=POST_ATTENTION),))


def read_layer_kinds(config: Config) -> list[str]:
    """The kind of every layer."""
    layers, named = read_layers(config), config.get("layer_types")
    if named is None:
        every = config.natural("full_attention_interval", default=4)
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if not isinstance(named, list) or len(named) != layers:
        count = len(named) if isinstance(named, list) else "no list"
        raise InputError(f"{config.at('layer_types')}: {layers} layers need as many kinds, found {count}")
    return [str(kind) for kind in named]


def read_sections(config: Config, rope: Rope) -> Rope:
    """mrope_section of rope_parameters, or rope_scaling in older configs: pairs for time, height and width."""
    found = [(s, n) for s in ("rope_parameters", "rope_scaling") if (n := config.section(s).get("mrope_section"))]
    for section, numbers in found:
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(type(n) is int and n >= 0 for n in numbers):
            raise InputError(f"{config.at(section)}: mrope_section: three numbers of pairs, found {brief(numbers)}")
        if sum(numbers) != rope.dims // 2:
            raise InputError(
                f"{config.at(section)}: mrope_section: {brief(numbers)} are not the {rope.dims // 2} rotated pairs"
            )
    return replace(rope, sections=tuple(found[0][1])) if found else rope


def read_delta_net(config: Config, *, fused_gates: bool) -> DeltaNet:
    """`fused_gates`: see DeltaNet."""
    k_heads = config.natural("linear_num_key_heads", limit=MOST_HEADS)
    v_heads = config.natural("linear_num_value_heads", limit=MOST_HEADS)
    if v_heads % k_heads:
        where = config.at("linear_num_value_heads")
        raise InputError(f"{where}: {v_heads} heads of values cannot be shared out among {k_heads} of keys")
    return DeltaNet(
        k_heads=k_heads,
        v_heads=v_heads,
        k_dim=config.natural("linear_key_head_dim", limit=MOST_HEADS),
        v_dim=config.natural("linear_value_head_dim", limit=MOST_HEADS),
        kernel=config.natural("linear_conv_kernel_dim", least=2, limit=256),
        fused_gates=fused_gates,
    )


NORMS: dict[str, tuple[Layout, ...]] = {  # (1 + w) · x, but for that of the delta net
    "output_norm.weight": (Source("model.norm.weight", map=ONE_PLUS),),
    "blk.{i}.attn_norm.weight": (Source(_L + "input_layernorm.weight", map=ONE_PLUS),),
    "blk.{i}.post_attention_norm.weight": (Source(_L + "post_attention_layernorm.weight", map=ONE_PLUS),),
    "blk.{i}.attn_q_norm.weight": (Source(_L + "self_attn.q_norm.weight", map=ONE_PLUS),),
    "blk.{i}.attn_k_norm.weight": (Source(_L + "self_attn.k_norm.weight", map=ONE_PLUS),),
    "blk.{i}.ssm_norm.weight": (Source(_D + "norm.weight"),),
}
DELTA_NET: dict[str, tuple[Layout, ...]] = {
    "blk.{i}.attn_qkv.weight": (Source(_D + "in_proj_qkv.weight"),),
    "blk.{i}.attn_gate.weight": (Source(_D + "in_proj_z.weight"),),
    "blk.{i}.ssm_beta.weight": (Source(_D + "in_proj_b.weight"),),
    "blk.{i}.ssm_alpha.weight": (Source(_D + "in_proj_a.weight"),),
    "blk.{i}.ssm_conv1d.weight": (Source(_D + "conv1d.weight"),),
    "blk.{i}.ssm_dt.bias": (Source(_D + "dt_bias"),),
    "blk.{i}.ssm_a": (Source(_D + "A_log", map=MINUS_EXP),),
    "blk.{i}.ssm_out.weight": (Source(_D + "out_proj.weight"),),
}
MTP = {r"(model\.)?mtp\..+": DRAFT_HEAD}


def draft_sources(sources: Mapping[str, tuple[Layout, ...]]) -> dict[str, tuple[Layout, ...]]:
    """Where the head that predicts a further token lies: a layer as the others, and what is around it."""
    around: dict[str, tuple[Layout, ...]] = {
        "blk.{i}.nextn.eh_proj.weight": (Source("mtp.fc.weight"),),
        "blk.{i}.nextn.enorm.weight": (Source("mtp.pre_fc_norm_embedding.weight", map=ONE_PLUS),),
        "blk.{i}.nextn.hnorm.weight": (Source("mtp.pre_fc_norm_hidden.weight", map=ONE_PLUS),),
        "blk.{i}.nextn.shared_head_norm.weight": (Source("mtp.norm.weight", map=ONE_PLUS),),
    }
    found = around | inside(_L, "mtp.layers.0.", {n: s for n, s in sources.items() if n.startswith("blk.")})
    also = inside("mtp.", "model.mtp.", found)
    return {name: (*layouts, *also[name]) for name, layouts in found.items()}
