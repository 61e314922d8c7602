"""Gated feed-forward."""

from __future__ import annotations

from ....architecture import Dense
from ..form import Form
from ..graph import Edge


def write(form: Form, ffn: Dense, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → down(silu(gate(x)) · up(x))."""
    at, name = f"/layers.{layer}/mlp", f"blk.{layer}.ffn_{{}}.weight"
    if not ffn.fused:
        return gated(form, at, x, name)
    both = form.linear(f"{at}/gate_up_proj", x, name.format("up"))
    gate, up = form.split(f"{at}/gate_up", both, ffn.width, ffn.width)
    return form.linear(f"{at}/down_proj", form.gated(f"{at}/act", gate, up), name.format("down"))


def gated(form: Form, at: str, x: Edge, name: str) -> Edge:
    """The same with weights called `name`, gate, up or down in its braces."""
    gate = form.linear(f"{at}/gate_proj", x, name.format("gate"))
    up = form.linear(f"{at}/up_proj", x, name.format("up"))
    return form.linear(f"{at}/down_proj", form.gated(f"{at}/act", gate, up), name.format("down"))
