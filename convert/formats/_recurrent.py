"""How llama.cpp has the layers that keep a state instead of a cache: order of rows, shapes, metadata."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..architecture import KDA, MLA, Architecture, DeltaNet, Recurrent, TensorSpec
from ..rows import Arrangement, Run, tiled, tiled_columns


def arrange_recurrent(a: Recurrent, spec: TensorSpec, kind: str, *, tiles_values: bool) -> Arrangement | None:
    """How the rows of such a layer's tensor stand; `kind` is its name in the layer, `tiles_values` as in Gguf."""
    if isinstance(a, DeltaNet):
        return _tiled(a, spec, kind) if tiles_values else None
    rows, columns = spec.shape[0], spec.shape[-1]
    if kind.startswith("ssm_conv1d"):
        return Arrangement((1, rows, 1, columns), (Run(0, rows, 0),))
    return Arrangement((1, 1, rows, 1), (Run(0, rows, 0),)) if kind == "ssm_a" else None


def _tiled(d: DeltaNet, spec: TensorSpec, kind: str) -> Arrangement | None:
    """ggml repeats q and k as a whole, so the first heads of v of all keys come first, then the second ones."""
    each, name = d.v_heads // d.k_heads, kind.partition(".")[0]
    if each == 1:
        return None
    if name in ("attn_qkv", "ssm_conv1d"):
        return tiled(spec.shape, d.k_heads, each, d.v_dim, first=2 * d.k_heads * d.k_dim)
    if name == "attn_gate":
        return tiled(spec.shape, d.k_heads, each, d.v_dim)
    if name in ("ssm_alpha", "ssm_beta"):
        return tiled(spec.shape, d.k_heads, each, 1)
    if name in ("ssm_dt", "ssm_a"):
        return replace(tiled_columns((1, d.v_heads), d.k_heads, each, 1), shape=spec.shape)
    return tiled_columns(spec.shape, d.k_heads, each, d.v_dim) if name == "ssm_out" else None


def recurrent_keys(w: Any, arch: Architecture) -> None:
    """Metadata of the recurrent layers, the same in all of them (see check_engine)."""
    kinds = [isinstance(b.attention, Recurrent) for b in arch.all_blocks]
    for a in dict.fromkeys(b.attention for b in arch.blocks if isinstance(b.attention, Recurrent)):
        w.add_ssm_conv_kernel(a.kernel)
        if isinstance(a, KDA):
            w.add_kda_head_dim(a.head_dim)
            continue
        w.add_ssm_state_size(a.k_dim)
        w.add_ssm_group_count(a.k_heads)
        w.add_ssm_time_step_rank(a.v_heads)
        w.add_ssm_inner_size(a.v_dim * a.v_heads)
        w.add_array(f"{w.arch}.attention.recurrent_layers", kinds)  # the package has no name for it
        w.add_full_attention_interval(kinds.index(False) + 1)


def key_heads(arch: Architecture) -> int | list[int]:
    """Key heads in the cache; for each layer where its kind is told by them: a layer of KDA has none."""
    (attention,) = arch.attentions  # see check_engine
    count = 1 if isinstance(attention, MLA) else attention.kv_heads
    if not any(isinstance(b.attention, KDA) for b in arch.blocks):
        return count
    return [0 if isinstance(b.attention, KDA) else count for b in arch.blocks]
