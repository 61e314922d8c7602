"""DeepSeek-V3's config: latent attention and experts with a sigmoid gate (Kimi K2, Moonlight and Kimi-VL share it)."""

from __future__ import annotations

from sampan.errors import brief, wrong

from .architecture import MLA, Architecture, Dense, MoE
from .config import Config, read_activation, read_rope
from .readers import MOST_EXPERTS, MOST_HEADS, read_context, read_layers, uniform

LATENT_EPS = 1e-6  # DeepSeek's modelling code and transformers leave the latents' norms at the class default


def read(config: Config) -> Architecture:
    """DeepSeek-V3's shape as a whole."""
    return uniform(config, read_latent_attention(config), read_sigmoid_experts(config))


def read_latent_attention(config: Config, *, rotated: bool = True) -> MLA:
    """`q_lora_rank` null or absent: q comes straight from the hidden state. `rotated`: see MLA.rope."""
    heads = config.natural("num_attention_heads", limit=MOST_HEADS)
    config.is_default("num_key_value_heads", heads)
    config.is_default("attention_bias", False)
    q_lora = config.get("q_lora_rank")
    rope_dims = config.natural("qk_rope_head_dim")
    return MLA(
        heads=heads,
        q_lora=None if q_lora is None else config.natural("q_lora_rank"),
        kv_lora=config.natural("kv_lora_rank"),
        nope=config.natural("qk_nope_head_dim"),
        rope_dims=rope_dims,
        v=config.natural("v_head_dim"),
        latent_eps=LATENT_EPS,
        rope=read_rope(config, rope_dims, read_context(config), latent=True) if rotated else None,
    )


def read_sigmoid_experts(config: Config) -> list[Dense | MoE]:
    """A feed-forward for each layer: dense ones first, then experts."""
    layers = read_layers(config)
    activation = read_activation(config)
    dense = Dense(config.natural("intermediate_size"), activation)
    leading = _leading(config, layers)
    config.is_default("scoring_func", "sigmoid")
    config.is_default("topk_method", "noaux_tc")
    config.is_default("moe_layer_freq", 1)
    experts = config.natural("n_routed_experts", "num_local_experts", limit=MOST_EXPERTS)
    used = config.natural("num_experts_per_tok", limit=experts)
    width = config.natural("moe_intermediate_size")
    shared = config.natural("n_shared_experts", least=0, limit=1024)
    groups, groups_used = _read_groups(config, experts, used)
    moe = MoE(
        experts=experts,
        used=used,
        width=width,
        activation=activation,
        gating="sigmoid",
        normalise=config.flag("norm_topk_prob", False),
        shared=shared,
        shared_width=shared * width,
        shared_gate=False,
        selection_bias=True,
        groups=groups,
        groups_used=groups_used,
        scale=config.number("routed_scaling_factor"),
    )
    return [dense] * leading + [moe] * (layers - leading)


def _leading(config: Config, layers: int) -> int:
    """How many layers are dense: the first ones, by `mlp_layer_types` or `first_k_dense_replace`."""
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return config.natural("first_k_dense_replace", least=0, limit=layers)
    leading = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * leading + ["sparse"] * (layers - leading):
        raise wrong(config.at("mlp_layer_types"), f"{layers} layers, dense ones first, then sparse", brief(kinds))
    config.is_default("first_k_dense_replace", leading)
    return leading


def _read_groups(config: Config, experts: int, used: int) -> tuple[int, int]:
    """Groups of experts and how many of them may be chosen from; (1, 1) where that limits nothing."""
    groups = config.natural("n_group", limit=experts)
    groups_used = config.natural("topk_group", limit=groups)
    if groups == groups_used:
        return 1, 1
    if experts % groups or experts // groups < 2:
        raise wrong(config.at("n_group"), f"equal groups of at least two among {experts} experts", brief(groups))
    if groups_used * (experts // groups) < used:
        raise wrong(config.at("topk_group"), f"groups that hold {used} experts", brief(groups_used))
    return groups, groups_used
