"""Gated delta net: a short convolution, then a state for each head in place of a cache."""

from __future__ import annotations

from ....architecture import DeltaNet
from ..form import RecurrentForm
from ..graph import Edge


def write(form: RecurrentForm, d: DeltaNet, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → the layer's output, before the residual."""
    at, blk = f"/layers.{layer}/linear_attn", f"blk.{layer}."
    qkv = form.linear(f"{at}/in_proj_qkv", x, f"{blk}attn_qkv.weight")
    qkv = form.convolution(f"{at}/conv", layer, qkv, f"{blk}ssm_conv1d.weight")
    keys = d.k_heads * d.k_dim
    q, k, v = form.split(f"{at}/qkv", qkv, keys, keys, d.v_heads * d.v_dim)
    q, k = form.unit_heads(f"{at}/q", q, d.k_heads), form.unit_heads(f"{at}/k", k, d.k_heads)
    beta, alpha = _gates(form, d, at, blk, x)
    decay = form.decay(f"{at}/decay", alpha, f"{blk}ssm_a", f"{blk}ssm_dt.bias")
    sizes = d.k_heads, d.v_heads, d.k_dim, d.v_dim
    y = form.delta_rule(at, layer, (q, k, v), decay, form.sigmoid(f"{at}/beta", beta), sizes)
    z = form.linear(f"{at}/in_proj_z", x, f"{blk}attn_gate.weight")
    y = form.gated_norm(f"{at}/norm", y, f"{blk}ssm_norm.weight", z, "silu")
    return form.linear(f"{at}/out_proj", y, f"{blk}ssm_out.weight")


def _gates(form: RecurrentForm, d: DeltaNet, at: str, blk: str, x: Edge) -> list[Edge]:
    """b and a of every head of v, [1, sequence, v_heads] each."""
    if not d.fused_gates:
        names = (("b", "beta"), ("a", "alpha"))
        return [form.linear(f"{at}/in_proj_{n}", x, f"{blk}ssm_{tensor}.weight") for n, tensor in names]
    both = form.heads(f"{at}/ba/heads", form.linear(f"{at}/in_proj_ba", x, f"{blk}ssm_ba.weight"), d.k_heads)
    each = d.v_heads // d.k_heads
    return [form.join(f"{at}/ba/{n}", e) for n, e in enumerate(form.split(f"{at}/ba", both, each, each))]
