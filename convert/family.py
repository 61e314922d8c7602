"""A model family as data: which configs it reads, how they become an Architecture, where its tensors lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sampan.checkpoint import Checkpoint
from sampan.errors import brief, wrong
from sampan.registry import load_all

from .architecture import GQA, MLA, Architecture, Block, Dense, MoE
from .config import Config, read_activation, read_rope, refuse_windows
from .latent import read_latent_attention, read_sigmoid_experts
from .quantization import read_rules


@dataclass(frozen=True, slots=True)
class Source:
    """Where a canonical tensor comes from: a checkpoint tensor's name with `{i}` for the layer.

    `{e}` in the name: one tensor per expert, stacked in order. `part` (n, of): the n-th of `of` equal
    row groups of a tensor (of each expert's slice where it has three dimensions). `of_heads`: what a latent
    attention's kv_b holds for each head: the rows of k, transposed, or those of v. `halves`: the pairs of the
    rotation are rows j and j + dims/2 of a head there, and rows 2j and 2j + 1 of the canonical tensor.
    """

    name: str
    part: tuple[int, int] = (0, 1)
    of_heads: Literal["k", "v"] | None = None
    halves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """How an MoE config is read where its keys are missing (the defaults of its transformers class)."""

    normalise: bool
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`architectures` are the names in config.json. `sources`: canonical tensor → possible layouts, tried in order.

    `bias_key`: what a config calls `qkv_bias`. `rotated`: share of a head's dimensions that are rotated where a config
    does not say; None where it cannot say. `fused_ffn` and `post_norms`: see Dense and Block. `leftovers`: tensors
    (regular expressions) that checkpoints carry and nobody needs. `left_out`: tensors (regular expressions, and what
    they are) of a part of the model that is not converted. `text`: the section of config.json that describes the
    language model, and the model types that it may have. `interleaved`: pairs of the rotation in the canonical tensors,
    see Rope. `only`: keys of the config and the values that they may have.
    """

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    latent: bool = False  # latent attention and sigmoid experts; the next ones, up to `experts`, then say nothing
    qkv_bias: bool = False
    bias_key: str = "qkv_bias"
    qk_norm: bool = False
    rotated: float | None = None
    fused_ffn: bool = False
    post_norms: bool = False
    head_dim: int | None = None  # of configs that do not say: None means hidden size / heads
    experts: Experts | None = None
    tied_default: bool = False
    sources: Mapping[str, tuple[Source, ...]]
    leftovers: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    text: tuple[str, tuple[str, ...]] | None = None
    interleaved: bool = False
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


def find_family(checkpoint: Checkpoint) -> tuple[str, Family]:
    """The family that claims the config's architecture and model_type, with its name."""
    where = checkpoint.folder / "config.json"
    names = checkpoint.config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    families: dict[str, Family] = load_all("sampan.convert.families", "FAMILY")
    for key, family in families.items():
        if name in family.architectures:
            kind = checkpoint.config.get("model_type")
            if kind not in family.model_types:
                raise wrong(f"{where}: model_type", f"{' or '.join(family.model_types)} with {name}", brief(kind))
            return key, family
    known = sorted(a for f in families.values() for a in f.architectures)
    hint = "`--to onnx --exporter optimum` may know it" if name else ""
    raise wrong(f"{where}: architectures", f"one of {', '.join(known)}", brief(name), hint)


def read_architecture(checkpoint: Checkpoint) -> tuple[Family, Architecture]:
    """Parse the config once; what would change the model and is not implemented is refused by name."""
    key, family = find_family(checkpoint)
    config = _text_config(checkpoint, family)
    for name, values in {"is_causal": (True,), **family.only}.items():
        config.is_default(name, *values)
    read_rules(checkpoint)
    hidden = config.natural("hidden_size")
    layers = config.natural("num_hidden_layers", limit=10_000)
    context = config.natural("max_position_embeddings")
    attention: GQA | MLA
    if family.latent:
        attention, ffn = read_latent_attention(config), read_sigmoid_experts(config, layers)
        rope = read_rope(config, attention.rope, context, latent=True)
    else:
        attention, ffn = _read_attention(config, family, hidden), _read_ffn(config, family, layers)
        rope = read_rope(
            config, attention.head_dim, context, latent=False, interleaved=family.interleaved, rotated=family.rotated
        )
    refuse_windows(config, layers, context)
    return family, Architecture(
        family=key,
        hidden=hidden,
        vocab=config.natural("vocab_size"),
        context=context,
        norm_eps=config.number("rms_norm_eps"),
        tied=config.flag("tie_word_embeddings", family.tied_default),
        rope=rope,
        dense_width=config.natural("intermediate_size"),
        blocks=tuple(Block(attention, f, family.post_norms) for f in ffn),
    )


def _text_config(checkpoint: Checkpoint, family: Family) -> Config:
    """The config of the language model, which may be a section of the checkpoint's."""
    config = Config(checkpoint.config, str(checkpoint.folder / "config.json"))
    if family.text is None:
        return config
    name, kinds = family.text
    text = config.section(name)
    if text.get("model_type") not in kinds:
        raise wrong(text.at("model_type"), " or ".join(kinds), brief(text.get("model_type")))
    tied = text.flag("tie_word_embeddings", family.tied_default)
    config.is_default("tie_word_embeddings", tied)
    return text


def _read_attention(config: Config, family: Family, hidden: int) -> GQA:
    heads = config.natural("num_attention_heads", limit=65_536)
    kv_heads = config.natural("num_key_value_heads", limit=65_536)
    if heads % kv_heads:
        raise wrong(config.at("num_key_value_heads"), f"a divisor of {heads} heads", kv_heads)
    if family.bias_key != "attention_bias":
        config.is_default("attention_bias", False)
    if family.head_dim is None and hidden % heads:
        raise wrong(config.at("num_attention_heads"), f"a divisor of hidden_size {hidden}", heads)
    head_dim = config.natural("head_dim", default=family.head_dim or hidden // heads)
    qkv_bias = config.flag(family.bias_key, True) if family.qkv_bias else False
    return GQA(heads, kv_heads, head_dim, qkv_bias, family.qk_norm)


def _read_ffn(config: Config, family: Family, layers: int) -> list[Dense | MoE]:
    activation = read_activation(config)
    dense = Dense(config.natural("intermediate_size"), activation, family.fused_ffn)
    if family.experts is None:
        return [dense] * layers
    count = config.natural("num_experts", "num_local_experts", limit=65_536)
    moe = MoE(
        experts=count,
        used=config.natural("num_experts_per_tok", limit=count),
        width=config.natural("moe_intermediate_size"),
        activation=activation,
        gating="softmax",
        normalise=config.flag("norm_topk_prob", family.experts.normalise),
        shared=int(family.experts.shared),
        shared_width=config.natural("shared_expert_intermediate_size") if family.experts.shared else 0,
        shared_gate=family.experts.shared,
    )
    step = config.natural("decoder_sparse_step", default=1)
    only_dense = config.get("mlp_only_layers") or []
    if not isinstance(only_dense, list) or not all(type(i) is int and 0 <= i < layers for i in only_dense):
        raise wrong(config.at("mlp_only_layers"), f"a list of layers below {layers}", brief(only_dense))
    return [moe if i not in only_dense and (i + 1) % step == 0 else dense for i in range(layers)]
