"""MiniMax-M2 (M2, M2.1, M2.5, M2.7): one norm over all heads of q and one over those of k, experts in every layer."""

from dataclasses import replace

from sampan.errors import brief, wrong

from ..architecture import Architecture, MoE
from ..config import Config, read_activation
from ..family import Gguf
from ..readers import MOST_EXPERTS, read_gqa, uniform
from ..rows import Source
from . import qwen2, qwen3
from .qwen3_moe import ROUTED

_L = "model.layers.{i}."
_M = _L + "block_sparse_moe."  # the makers' name; transformers saves the same


def read(config: Config) -> Architecture:
    """What transformers takes for granted must be what the makers' config says."""
    for key, harmless in (
        ("use_qk_norm", (True,)), ("qk_norm_type", ("per_layer",)), ("use_routing_bias", (True,)),
        ("scoring_func", ("sigmoid",)), ("shared_intermediate_size", (0,)),
    ):  # fmt: skip
        config.is_default(key, *harmless)
    kinds = config.get("attn_type_list") or []
    if not isinstance(kinds, list) or any(kind != 1 for kind in kinds):
        raise wrong(config.at("attn_type_list"), "1, full attention, in every layer", brief(kinds))
    attention = read_gqa(_with_share(config), qk_norm=True, whole_norm=True, partial=True)
    return uniform(config, attention, _read_experts(config))


def _with_share(config: Config) -> Config:
    """The makers give the rotated dimensions of a head in rotary_dim, transformers their share."""
    width = config.natural("head_dim")
    if config.get("rotary_dim") is None:
        return replace(config, values={"partial_rotary_factor": 1.0, **config.values})
    dims = config.natural("rotary_dim", limit=width)
    for section in (config, config.section("rope_parameters"), config.section("rope_scaling")):
        section.is_default("partial_rotary_factor", dims / width)
    return replace(config, values={**config.values, "partial_rotary_factor": dims / width})


def _read_experts(config: Config) -> MoE:
    count = config.natural("num_local_experts", "num_experts", limit=MOST_EXPERTS)
    return MoE(
        experts=count,
        used=config.natural("num_experts_per_tok", limit=count),
        width=config.natural("intermediate_size"),
        activation=read_activation(config),
        gating="sigmoid",
        normalise=True,
        shared=0,
        shared_width=0,
        shared_gate=False,
        selection_bias=True,
    )


def _routed(part: str, number: int) -> tuple[Source, ...]:
    name = f"blk.{{i}}.ffn_{part}_exps.weight"
    return Source(f"{_M}experts.{{e}}.w{number}.weight"), *ROUTED[name]


FAMILY = replace(
    qwen3.FAMILY,
    architectures=("MiniMaxM2ForCausalLM",),
    model_types=("minimax_m2",),
    read=read,
    defaults=qwen2.DEFAULTS
    | {
        "max_position_embeddings": 196608, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5000000.0,
        "num_experts_per_tok": 8, "num_local_experts": 256,
    },
    gguf=Gguf(architecture="minimax-m2", rope_dims=True, normalises=True, untied=True),
    sources={
        **qwen3.FAMILY.sources,
        "blk.{i}.ffn_gate_inp.weight": (Source(_M + "gate.weight"),),
        "blk.{i}.exp_probs_b.bias": (Source(_M + "e_score_correction_bias"),),
        "blk.{i}.ffn_gate_exps.weight": _routed("gate", 1),
        "blk.{i}.ffn_down_exps.weight": _routed("down", 2),
        "blk.{i}.ffn_up_exps.weight": _routed("up", 3),
    },
)  # fmt: skip
