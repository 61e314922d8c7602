"""Multi-head latent attention in its absorbed form: queries go into the latent space, the cache holds latents.

With q·k = q_rope·k_rope + (W_kbᵀ q_nope)·latent, all heads share one key of rope + kv_lora dimensions, and the value
is the same vector before its rotation; of the result only the latent part counts (arXiv 2405.04434, section 2.1.2).
"""

from __future__ import annotations

import math

from ....architecture import MLA, YarnScaling
from ..cpu import Cpu
from ..graph import Edge


def write(form: Cpu, a: MLA, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → the attention's output, before the residual."""
    at, blk = f"/layers.{layer}/attn", f"blk.{layer}.attn_"
    if a.q_lora is None:
        q = form.linear(f"{at}/q_proj", x, f"{blk}q.weight")
    else:
        q_latent = form.linear(f"{at}/q_a_proj", x, f"{blk}q_a.weight")
        q_latent = form.norm(f"{at}/q_a_norm", q_latent, f"{blk}q_a_norm.weight", a.latent_eps)
        q = form.linear(f"{at}/q_b_proj", q_latent, f"{blk}q_b.weight")
    kv = form.linear(f"{at}/kv_a_proj", x, f"{blk}kv_a_mqa.weight")
    latent, k_rope = form.split(f"{at}/kv", kv, a.kv_lora, a.rope)
    latent = form.norm(f"{at}/kv_a_norm", latent, f"{blk}kv_a_norm.weight", a.latent_eps)
    key = form.concat(f"{at}/key", k_rope, latent)
    nope, q_rope = form.split(f"{at}/q", form.heads(f"{at}/q/heads", q, a.heads), a.nope, a.rope)
    absorbed = form.each_head(f"{at}/k_b", nope, f"{blk}k_b.weight")
    query = form.join(f"{at}/query/join", form.concat(f"{at}/query", q_rope, absorbed))
    width = a.rope + a.kv_lora
    y = form.attention(at, layer, [query, key, key], a.heads, 1, width, scale(form, a))
    _, y = form.split(f"{at}/out", form.heads(f"{at}/out/heads", y, a.heads), a.rope, a.kv_lora)
    y = form.join(f"{at}/value/join", form.each_head(f"{at}/v_b", y, f"{blk}v_b.weight"))
    return form.linear(f"{at}/o_proj", y, f"{blk}output.weight")


def scale(form: Cpu, a: MLA) -> float:
    """1/√(nope + rope), times the square of yarn's mscale_all_dim where there is one."""
    scaling = form.rope.scaling
    factor = 1.0
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim and scaling.factor > 1:
        factor = 0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1
    return float(factor**2 / math.sqrt(a.nope + a.rope))
