"""Grouped-query attention: q, k and v in one matrix, norms of heads, rotation and cache in one operator."""

from __future__ import annotations

from ....architecture import GQA
from ..form import Form
from ..graph import Edge


def write(form: Form, a: GQA, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → the attention's output, before the residual."""
    at, blk = f"/layers.{layer}/attn", f"blk.{layer}.attn_"
    parts = ("q", "k", "v")
    names = [f"{blk}{p}.weight" for p in parts]
    biases = [f"{blk}{p}.bias" for p in parts] if a.qkv_bias else []
    widths = [n * a.head_dim for n in (2 * a.heads if a.gated else a.heads, a.kv_heads, a.kv_heads)]
    if form.together(*names):
        qkv = [form.linear(f"{at}/qkv_proj", x, *names, bias=biases)]
    else:
        qkv = [
            form.linear(f"{at}/{p}_proj", x, n, bias=biases[i : i + 1])
            for i, (p, n) in enumerate(zip(parts, names, strict=True))
        ]
    if (a.qk_norm or a.gated) and len(qkv) == 1:
        qkv = form.split(f"{at}/qkv", qkv[0], *widths)
    if a.gated:
        both = form.split(f"{at}/q/gate", form.heads(f"{at}/q/heads", qkv[0], a.heads), a.head_dim, a.head_dim)
        qkv[0], gate = (form.join(f"{at}/q/{n}", e) for n, e in zip(("join", "gate/join"), both, strict=True))
    if a.qk_norm:
        q, k, v = qkv
        branches = (1, 1) if a.whole_norm else (a.heads, a.kv_heads)
        q = form.head_norm(f"{at}/q_norm", q, f"{blk}q_norm.weight", branches[0])
        k = form.head_norm(f"{at}/k_norm", k, f"{blk}k_norm.weight", branches[1])
        qkv = [q, k, v]
    y = form.attention(at, layer, qkv, a.rope, a.heads, a.kv_heads, a.head_dim)
    if a.gated:
        y = form.multiply(f"{at}/gate", y, form.sigmoid(f"{at}/gate", gate))
    return form.linear(f"{at}/o_proj", y, f"{blk}output.weight")
