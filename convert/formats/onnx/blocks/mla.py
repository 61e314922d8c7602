"""Multi-head latent attention, expanded: every head gets its own key and value from the latent.

The absorbed form, which caches latents, needs less memory and is several times slower in this operator: numbers in
docs/decisions.md (benchmarks/latent.py). A head's rotated dimensions stand first here, as forms rotate them.
"""

from __future__ import annotations

import math

from sampan.errors import wrong

from ....architecture import MLA, YarnScaling
from ..form import Form
from ..graph import Edge


def write(form: Form, a: MLA, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → the attention's output, before the residual."""
    at, blk, width = f"/layers.{layer}/attn", f"blk.{layer}.attn_", a.nope + a.rope_dims
    if a.v > width:
        raise wrong("--to onnx", f"values of at most the {width} dimensions of a key", a.v)
    if a.q_lora is None:
        q = form.linear(f"{at}/q_proj", x, f"{blk}q.weight")
    else:
        q_latent = form.linear(f"{at}/q_a_proj", x, f"{blk}q_a.weight")
        q_latent = form.norm(f"{at}/q_a_norm", q_latent, f"{blk}q_a_norm.weight", a.latent_eps)
        q = form.linear(f"{at}/q_b_proj", q_latent, f"{blk}q_b.weight")
    q_nope, q_rope = form.split(f"{at}/q", form.heads(f"{at}/q/heads", q, a.heads), a.nope, a.rope_dims)
    query = form.join(f"{at}/query/join", form.concat(f"{at}/query", q_rope, q_nope))

    kv = form.linear(f"{at}/kv_a_proj", x, f"{blk}kv_a_mqa.weight")
    latent, k_rope = form.split(f"{at}/kv_a", kv, a.kv_lora, a.rope_dims)
    latent = form.norm(f"{at}/kv_a_norm", latent, f"{blk}kv_a_norm.weight", a.latent_eps)
    kv = form.linear(f"{at}/kv_b_proj", latent, f"{blk}k_b.weight", f"{blk}v_b.weight")
    k_nope, value = form.split(f"{at}/kv_b", kv, a.heads * a.nope, a.heads * a.v)
    shared = form.repeat(f"{at}/k_rope", form.heads(f"{at}/k_rope/heads", k_rope, 1), a.heads)
    key = form.concat(f"{at}/key", shared, form.heads(f"{at}/k/heads", k_nope, a.heads))
    qkv = [query, key, form.heads(f"{at}/v/heads", value, a.heads)]
    y = form.attention(at, layer, qkv, a.rope, a.heads, a.heads, width, v_dim=a.v, scale=scale(a))
    return form.linear(f"{at}/o_proj", y, f"{blk}output.weight")


def scale(a: MLA) -> float:
    """1/√(nope + rope_dims), times the square of yarn's mscale_all_dim where there is one."""
    scaling = a.rope.scaling if a.rope else None
    factor = 1.0
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim and scaling.factor > 1:
        factor = 0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1
    return float(factor**2 / math.sqrt(a.nope + a.rope_dims))
