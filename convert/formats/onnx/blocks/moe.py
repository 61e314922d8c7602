"""Mixture of experts: a router, the chosen experts, and those that are always on."""

from __future__ import annotations

from ....architecture import MoE
from ..form import MixingForm
from ..graph import Edge
from .dense import gated


def write(form: MixingForm, moe: MoE, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → the weighted sum of the experts' outputs."""
    at, blk = f"/layers.{layer}/moe", f"blk.{layer}.ffn_"
    logits = form.linear(f"{at}/router", x, f"{blk}gate_inp.weight")
    names = [f"{blk}{p}_exps.weight" for p in ("gate", "up", "down")]
    choice = form.route(f"{at}/experts/router", logits, moe, f"blk.{layer}.exp_probs_b.bias")
    y = form.experts(f"{at}/experts", x, choice, moe, *names)
    if not moe.shared_width:
        return y
    shared = gated(form, f"{at}/shared", x, f"{blk}{{}}_shexp.weight")
    if moe.shared_gate:
        gate = form.sigmoid(f"{at}/shared_gate", form.linear(f"{at}/shared_gate", x, f"{blk}gate_inp_shexp.weight"))
        shared = form.multiply(f"{at}/shared_gate", shared, gate)
    return form.add(at, y, shared)
