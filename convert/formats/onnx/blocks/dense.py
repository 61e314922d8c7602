"""Gated feed-forward."""

from __future__ import annotations

from ....architecture import Dense
from ..cpu import Cpu
from ..graph import Edge


def write(form: Cpu, ffn: Dense, layer: int, x: Edge) -> Edge:
    """x [1, sequence, hidden] → down(silu(gate(x)) · up(x))."""
    return gated(form, f"/layers.{layer}/mlp", x, f"blk.{layer}.ffn_{{}}.weight")


def gated(form: Cpu, at: str, x: Edge, name: str) -> Edge:
    """The same with weights called `name`, gate, up or down in its braces."""
    gate = form.linear(f"{at}/gate_proj", x, name.format("gate"))
    up = form.linear(f"{at}/up_proj", x, name.format("up"))
    return form.linear(f"{at}/down_proj", form.gated(f"{at}/act", gate, up), name.format("down"))
