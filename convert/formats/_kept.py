"""What a layer keeps of earlier tokens, by engine: `Format.kept`. tests/test_demand.py compares it with theirs."""

from __future__ import annotations

from sampan.demand import Kept

from ..architecture import KDA, MLA, Attention, Recurrent

F16, F32, U8 = 2, 4, 1  # bytes of a number


def llama(a: Attention) -> Kept:
    """llama.cpp: float16; of a latent attention the latent alone, which is key and value."""
    if isinstance(a, Recurrent):
        return Kept(state=_state(a))
    if isinstance(a, MLA):
        return Kept(F16 * (a.kv_lora + a.rope_dims), width=2 * a.kv_lora + a.rope_dims)
    return Kept(F16 * a.kv_heads * 2 * a.head_dim, width=2 * a.head_dim)


def onnx(a: Attention) -> Kept:
    """Our graphs for processors: float32; a latent expanded, values as wide as keys; states twice, old and new."""
    if isinstance(a, Recurrent):
        return Kept(state=2 * _state(a))
    heads, width = (a.heads, a.nope + a.rope_dims) if isinstance(a, MLA) else (a.kv_heads, a.head_dim)
    return Kept(F32 * heads * 2 * width, width=2 * width)


def static(a: Attention) -> Kept:
    """Our graphs for NPUs: 8 bits, values as wide as they are."""
    if isinstance(a, Recurrent):
        raise AssertionError("static graphs have no layers with states")
    if isinstance(a, MLA):
        heads, width = a.heads, a.nope + a.rope_dims + a.v
    else:
        heads, width = a.kv_heads, 2 * a.head_dim
    return Kept(U8 * heads * width, width=width)


def plain(a: Attention) -> Kept:
    """The same for compilers that quantise by themselves: float16."""
    kept = static(a)
    return Kept(F16 // U8 * kept.cell, width=kept.width)


def _state(a: Recurrent) -> int:
    """Of the convolution, the last kernel - 1 positions, and of the recurrence, a matrix for each head."""
    channels, cells = (3 * a.width, a.heads * a.head_dim**2) if isinstance(a, KDA) else (
        a.channels, a.v_heads * a.k_dim * a.v_dim
    )  # fmt: skip
    return F32 * ((a.kernel - 1) * channels + cells)
