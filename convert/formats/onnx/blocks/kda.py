"""Kimi delta attention: short convolutions, then a state for each head that decays by dimension of k."""

from __future__ import annotations

from ....architecture import KDA
from ..form import RecurrentForm
from ..graph import Edge


def write(form: RecurrentForm, d: KDA, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → the layer's output, before the residual."""
    at, blk = f"/layers.{layer}/linear_attn", f"blk.{layer}."
    names = [f"{blk}attn_{part}.weight" for part in "qkv"]
    if form.together(*names):
        qkv = form.linear(f"{at}/qkv_proj", x, *names)
    else:
        each = [form.linear(f"{at}/{part}_proj", x, name) for part, name in zip("qkv", names, strict=True)]
        qkv = form.concat(f"{at}/qkv_proj", *each)
    qkv = form.convolution(f"{at}/conv", layer, qkv, *(f"{blk}ssm_conv1d_{part}.weight" for part in "qkv"))
    q, k, v = form.split(f"{at}/qkv", qkv, d.width, d.width, d.width)
    q, k = form.unit_heads(f"{at}/q", q, d.heads), form.unit_heads(f"{at}/k", k, d.heads)
    forget = form.linear(
        f"{at}/f_b_proj", form.linear(f"{at}/f_a_proj", x, f"{blk}ssm_f_a.weight"), f"{blk}ssm_f_b.weight"
    )
    decay = form.decay(f"{at}/decay", forget, f"{blk}ssm_a", f"{blk}ssm_dt.bias", heads=d.heads)
    beta = form.sigmoid(f"{at}/beta", form.linear(f"{at}/b_proj", x, f"{blk}ssm_beta.weight"))
    y = form.delta_rule(at, layer, (q, k, v), decay, beta, (d.heads, d.heads, d.head_dim, d.head_dim))
    z = form.linear(f"{at}/g_a_proj", x, f"{blk}ssm_g_a.weight")
    z = form.linear(f"{at}/g_b_proj", z, f"{blk}ssm_g_b.weight")
    y = form.gated_norm(f"{at}/norm", y, f"{blk}ssm_norm.weight", z, "sigmoid")
    return form.linear(f"{at}/o_proj", y, f"{blk}attn_output.weight")
