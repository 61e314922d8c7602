"""Kimi-Linear (48B-A3B): three layers of Kimi delta attention to one of latent attention, which does not rotate."""

from dataclasses import replace

from sampan.errors import InputError, brief, wrong

from ..architecture import KDA, Architecture, Attention, Block
from ..config import Config
from ..family import Gguf
from ..latent import read_latent_attention, read_sigmoid_experts
from ..readers import MOST_HEADS, assemble, read_layers
from ..rows import MINUS_EXP, Cut, Layout, Source
from . import deepseek_v3
from .qwen3_moe import ROUTED

_L = "model.layers.{i}."
_A = _L + "self_attn."
NAMES = {  # what the makers call keys of other families
    "model_max_length": "max_position_embeddings", "num_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok", "num_shared_experts": "n_shared_experts",
    "num_expert_group": "n_group", "moe_renormalize": "norm_topk_prob", "moe_router_activation_func": "scoring_func",
}  # fmt: skip
LINEAR = {
    "num_heads": "linear_num_heads",
    "head_dim": "linear_head_dim",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
KDA_LAYERS, FULL_LAYERS = "kda_layers", "full_attn_layers"  # in linear_attn_config, counted from one


def read(config: Config) -> Architecture:
    """The makers' config, or the one that transformers saves."""
    config = config.spelled(NAMES)
    config.is_default("mla_use_nope", True)
    config.is_default("rope_scaling")
    kinds: dict[str, Attention] = {
        "full_attention": read_latent_attention(config, rotated=False),
        "linear_attention": _read_kda(config),
    }
    ffns = read_sigmoid_experts(config)
    return assemble(config, [Block(kinds[k], f) for k, f in zip(_read_kinds(config), ffns, strict=True)])


def _read_kda(config: Config) -> KDA:
    """From linear_attn_config, or from keys of the config itself."""
    linear = config.section("linear_attn_config")
    unknown = next((k for k in linear.values if k not in (*LINEAR, KDA_LAYERS, FULL_LAYERS)), None)
    if unknown is not None:
        raise wrong(linear.at(brief(unknown)), f"only {', '.join((*LINEAR, KDA_LAYERS, FULL_LAYERS))}", "another key")
    found = linear.spelled(LINEAR) if linear.values else config
    return KDA(
        heads=found.natural("linear_num_heads", limit=MOST_HEADS),
        head_dim=found.natural("linear_head_dim", limit=MOST_HEADS),
        kernel=found.natural("linear_conv_kernel_dim", least=2, limit=256),
    )


def _read_kinds(config: Config) -> list[str]:
    """The kind of every layer: two lists that share out the layers, or layer_types."""
    layers, linear = read_layers(config), config.section("linear_attn_config")
    named = config.get("layer_types")
    if named is None:
        return _shared_out(linear, layers)
    if not isinstance(named, list) or len(named) != layers:
        count = len(named) if isinstance(named, list) else "no list"
        raise InputError(f"{config.at('layer_types')}: {layers} layers need as many kinds, found {count}")
    unknown = next((k for k in named if k not in ("full_attention", "linear_attention")), None)
    if unknown is not None:
        raise wrong(config.at("layer_types"), "full_attention or linear_attention", brief(unknown))
    if {KDA_LAYERS, FULL_LAYERS} & linear.values.keys() and named != _shared_out(linear, layers):
        raise InputError(f"{config.at('layer_types')}: linear_attn_config says other kinds; delete the wrong ones")
    return named


def _shared_out(linear: Config, layers: int) -> list[str]:
    kinds: list[str | None] = [None] * layers
    for key, kind in ((KDA_LAYERS, "linear_attention"), (FULL_LAYERS, "full_attention")):
        numbers = linear.get(key)
        if not isinstance(numbers, list):
            raise wrong(linear.at(key), "a list of layers", brief(numbers))
        for n in numbers:
            if type(n) is not int or not 1 <= n <= layers:
                raise wrong(linear.at(key), f"layers from 1 to {layers}", brief(n))
            if kinds[n - 1] is not None:
                raise wrong(linear.at(key), "each layer once in both lists", f"{n} twice")
            kinds[n - 1] = kind
    if None in kinds:
        where = linear.at(f"{KDA_LAYERS} and {FULL_LAYERS}")
        raise wrong(where, f"all {layers} layers in them", f"no {kinds.index(None) + 1}")
    return [str(k) for k in kinds]


def _moe(name: str) -> tuple[Layout, ...]:
    return Source(f"{_L}block_sparse_moe.{name}"), Source(f"{_L}mlp.{name}")


def _expert(part: str, number: int) -> tuple[Layout, ...]:
    """The makers' numbered matrices; and as transformers holds them, stacked."""
    return Source(f"{_L}block_sparse_moe.experts.{{e}}.w{number}.weight"), *ROUTED[f"blk.{{i}}.ffn_{part}_exps.weight"]


def _gate(name: str, map_: bool = False) -> tuple[Layout, ...]:
    """Of the forget gate, which transformers holds as a module of its own."""
    function = MINUS_EXP if map_ else None
    return Source(_A + name, map=function), Source(f"{_A}forget_gate.{name}", map=function)


def _convolution(part: int) -> tuple[Layout, ...]:
    def cut(block: Block) -> Cut:
        width = block.attention.width  # type: ignore[union-attr]  # no other attention has such tensors
        return Cut(part * width, width, 3 * width)

    return Source(f"{_A}{'qkv'[part]}_conv1d.weight"), Source(_A + "conv1d.weight", cut=cut)


FAMILY = replace(
    deepseek_v3.FAMILY,
    architectures=("KimiLinearForCausalLM",),
    model_types=("kimi_linear",),
    read=read,
    defaults={
        "hidden_act": "silu", "tie_word_embeddings": False, "num_expert_group": 1, "topk_group": 1,
        "moe_renormalize": True,
    },
    gguf=Gguf(architecture="kimi-linear", leading=True, rope_dims=True, vocab=True),
    sources={
        **deepseek_v3.FAMILY.sources,
        **{f"blk.{{i}}.ssm_conv1d_{'qkv'[n]}.weight": _convolution(n) for n in range(3)},
        "blk.{i}.ssm_f_a.weight": _gate("f_a_proj.weight"),
        "blk.{i}.ssm_f_b.weight": _gate("f_b_proj.weight"),
        "blk.{i}.ssm_beta.weight": (Source(_A + "b_proj.weight"),),
        "blk.{i}.ssm_a": _gate("A_log", map_=True),
        "blk.{i}.ssm_dt.bias": _gate("dt_bias"),
        "blk.{i}.ssm_g_a.weight": (Source(_A + "g_a_proj.weight"),),
        "blk.{i}.ssm_g_b.weight": (Source(_A + "g_b_proj.weight"),),
        "blk.{i}.ssm_norm.weight": (Source(_A + "o_norm.weight"),),
        **{f"blk.{{i}}.ffn_{p}.weight": _moe(f"{p}_proj.weight")[::-1] for p in ("gate", "up", "down")},
        "blk.{i}.ffn_gate_inp.weight": _moe("gate.weight"),
        "blk.{i}.exp_probs_b.bias": _moe("gate.e_score_correction_bias"),
        "blk.{i}.ffn_gate_exps.weight": _expert("gate", 1),
        "blk.{i}.ffn_down_exps.weight": _expert("down", 2),
        "blk.{i}.ffn_up_exps.weight": _expert("up", 3),
        **{f"blk.{{i}}.ffn_{p}_shexp.weight": _moe(f"shared_experts.{p}_proj.weight") for p in ("gate", "up", "down")},
    },
)  # fmt: skip
