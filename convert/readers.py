"""Readers that families share: parts of a decoder's config → parts of an Architecture."""

from __future__ import annotations

from collections.abc import Sequence

from sampan.errors import brief, wrong

from .architecture import GQA, Architecture, Attention, Block, Dense, MoE, Recurrent
from .config import Config, read_activation, read_rope, refuse_windows

DUAL_CHUNK = (
    "dual_chunk_attention_config is left out: no engine here computes it, so the context is that of the training"
)
MOST_HEADS = MOST_EXPERTS = 65_536
MOST_WORDS = 2_000_000


def read_layers(config: Config) -> int:
    """How many blocks there are."""
    return config.natural("num_hidden_layers", limit=10_000)


def read_context(config: Config) -> int:
    """The longest context, in tokens: what the model was trained for, where more needs dual chunk attention."""
    context = config.natural("max_position_embeddings")
    return min(context, _dual_chunk(config).natural("original_max_position_embeddings", default=context))


def _dual_chunk(config: Config) -> Config:
    return config.section("dual_chunk_attention_config")


def uniform(
    config: Config,
    attention: Attention,
    ffn: Dense | MoE | Sequence[Dense | MoE],
    *,
    post_norms: bool = False,
    ffn_norm: str = "ffn_norm",
) -> Architecture:
    """A decoder whose layers all have the same attention; `ffn` is one for all layers or one for each. `post_norms`,
    `ffn_norm`: see Block.
    """
    layers = read_layers(config)
    refuse_windows(config, layers, read_context(config))
    each = [ffn] * layers if isinstance(ffn, Dense | MoE) else ffn
    return assemble(config, [Block(attention, f, post_norms, ffn_norm) for f in each])


def assemble(config: Config, blocks: Sequence[Block]) -> Architecture:
    """An Architecture of these blocks, with what a config says once for all of them."""
    config.is_default("is_causal", True)
    if all(isinstance(b.attention, Recurrent) for b in blocks):
        raise wrong(config.where, "a layer of full attention, without which no engine here has a cache", "none")
    return Architecture(
        hidden=config.natural("hidden_size"),
        vocab=config.natural("vocab_size", limit=MOST_WORDS),
        context=read_context(config),
        norm_eps=config.number("rms_norm_eps"),
        tied=config.flag("tie_word_embeddings", False),
        dense_width=config.natural("intermediate_size", default=0, least=0),
        blocks=tuple(blocks),
        notes=(DUAL_CHUNK,) if _dual_chunk(config).values else (),
    )


def read_gqa(
    config: Config,
    *,
    bias_key: str = "attention_bias",
    biased: bool | None = False,
    qk_norm: bool = False,
    interleaved: bool = False,
    partial: bool = False,
    gated: bool = False,
    whole_norm: bool = False,
) -> GQA:
    """Grouped-query attention, the same in every layer.

    `biased`: whether q, k and v have biases; None where `bias_key` says so. A head that the config does not size has
    hidden size / heads dimensions. `interleaved`: see Rope. `partial`: see read_rope. `gated`, `whole_norm`: see GQA.
    """
    hidden = config.natural("hidden_size")
    heads = config.natural("num_attention_heads", limit=MOST_HEADS)
    kv_heads = config.natural("num_key_value_heads", default=heads, limit=MOST_HEADS)
    if heads % kv_heads:
        raise wrong(config.at("num_key_value_heads"), f"a divisor of {heads} heads", kv_heads)
    if biased is not None or bias_key != "attention_bias":
        config.is_default("attention_bias", False)
    if config.get("head_dim") is None and hidden % heads:
        raise wrong(config.at("num_attention_heads"), f"a divisor of hidden_size {hidden}", heads)
    width = config.natural("head_dim", default=hidden // heads)
    bias = config.flag(bias_key, False) if biased is None else biased
    rope = read_rope(config, width, read_context(config), latent=False, interleaved=interleaved, partial=partial)
    return GQA(heads, kv_heads, width, bias, qk_norm, rope, gated, whole_norm)


def read_dense(config: Config, *, fused: bool = False) -> Dense:
    """A gated feed-forward; `fused`: see Dense."""
    return Dense(config.natural("intermediate_size"), read_activation(config), fused)


def read_softmax_experts(config: Config, *, shared: bool, normalise: bool | None = None) -> list[Dense | MoE]:
    """A feed-forward for each layer of Qwen's mixtures: experts, and dense layers where the config wants them.

    `shared`: there is an expert that is always on, with a gate. `normalise`: whether the chosen weights are divided by
    their sum; None where the config says so.
    """
    layers = read_layers(config)
    count = config.natural("num_experts", "num_local_experts", limit=MOST_EXPERTS)
    moe = MoE(
        experts=count,
        used=config.natural("num_experts_per_tok", limit=count),
        width=config.natural("moe_intermediate_size"),
        activation=read_activation(config),
        gating="softmax",
        normalise=config.flag("norm_topk_prob", False) if normalise is None else normalise,
        shared=int(shared),
        shared_width=config.natural("shared_expert_intermediate_size") if shared else 0,
        shared_gate=shared,
    )
    step = config.natural("decoder_sparse_step", default=1)
    only_dense = config.get("mlp_only_layers") or []
    if not isinstance(only_dense, list) or not all(type(i) is int and 0 <= i < layers for i in only_dense):
        raise wrong(config.at("mlp_only_layers"), f"a list of layers below {layers}", brief(only_dense))
    dense = read_dense(config) if only_dense or step > 1 else moe
    return [moe if i not in only_dense and (i + 1) % step == 0 else dense for i in range(layers)]
