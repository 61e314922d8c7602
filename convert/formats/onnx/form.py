"""What a form of ONNX graph offers to blocks: their words, each of which it writes as operators.

A form is a file of `forms/`; blocks know this vocabulary and no form. How activations lie, how wide a head is padded
and how the cache is laid out is the form's business. `path` names the nodes; `x` is an edge that the form made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...architecture import MoE, Rope
from .graph import Edge


class Form(Protocol):
    """Linear layers, norms, heads and attention: what every form has, and the frame of a decoder."""

    def embedding(self) -> Edge:
        """The hidden state before the first layer."""

    def wanted(self, *edges: Edge) -> list[Edge]:
        """The positions whose logits are wanted, of some hidden states."""

    def add_norm(self, path: str, x: Edge, delta: Edge, name: str) -> tuple[Edge, Edge]:
        """(x + delta, its RMS norm)."""

    def logits(self, x: Edge, name: str) -> None:
        """The head, whose output is the graph's."""

    def linear(self, path: str, x: Edge, *names: str, bias: Sequence[str] = ()) -> Edge:
        """x · Wᵀ + b of one or several canonical weights, their rows stacked."""

    def together(self, *names: str) -> bool:
        """Whether some weights are to be one linear layer."""

    def norm(self, path: str, x: Edge, name: str, eps: float | None = None) -> Edge:
        """RMS norm over the last dimension, with the model's epsilon or another."""

    def head_norm(self, path: str, x: Edge, name: str, heads: int) -> Edge:
        """RMS norm of every head of joined heads."""

    def heads(self, path: str, x: Edge, heads: int) -> Edge:
        """The last dimension cut into heads of one width."""

    def join(self, path: str, x: Edge) -> Edge:
        """The reverse of `heads`."""

    def repeat(self, path: str, x: Edge, heads: int) -> Edge:
        """One head, the same for each of `heads`."""

    def concat(self, path: str, *parts: Edge) -> Edge:
        """Along the last dimension."""

    def split(self, path: str, x: Edge, *widths: int) -> list[Edge]:
        """Cut the last dimension."""

    def attention(
        self,
        path: str,
        layer: int,
        qkv: Sequence[Edge],
        rope: Rope | None,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        v_dim: int | None = None,
        scale: float | None = None,
    ) -> Edge:
        """Rotate, append to the cache, attend: joined heads of `v_dim` (None: of `head_dim`).

        `qkv`: q, k and v, cut into heads or joined, or the three in one. A rotation of fewer dimensions than a head has
        is of its first ones; None: nothing is rotated. `scale` None: 1/√head_dim.
        """

    def gated(self, path: str, gate: Edge, up: Edge) -> Edge:
        """silu(gate) · up."""

    def multiply(self, path: str, a: Edge, b: Edge) -> Edge: ...

    def add(self, path: str, a: Edge, b: Edge) -> Edge: ...

    def sigmoid(self, path: str, x: Edge) -> Edge: ...


class MixingForm(Form, Protocol):
    """With mixtures of experts."""

    def route(self, path: str, logits: Edge, moe: MoE, bias: str) -> Edge:
        """The router's logits → what `experts` chooses by; `bias` names what is added for the choice only."""

    def experts(self, path: str, x: Edge, flat: Edge, moe: MoE, gate: str, up: str, down: str) -> Edge:
        """The chosen experts of every token, weighted; `flat` from `route`."""


class RecurrentForm(Form, Protocol):
    """With states in place of a cache."""

    def convolution(self, path: str, layer: int, x: Edge, *names: str) -> Edge:
        """silu of a causal convolution of each channel, whose last inputs are a state."""

    def unit_heads(self, path: str, x: Edge, heads: int) -> Edge:
        """Every head of joined heads divided by its length."""

    def decay(self, path: str, alpha: Edge, a: str, bias: str, *, heads: int | None = None) -> Edge:
        """a · softplus(alpha + bias); with `heads`, a has one value for a head's width."""

    def delta_rule(
        self,
        path: str,
        layer: int,
        qkv: tuple[Edge, Edge, Edge],
        decay: Edge,
        beta: Edge,
        sizes: tuple[int, int, int, int],
    ) -> Edge:
        """The recurrence of DeltaNet and KDA; `sizes`: heads of k and of v, width of k and of v."""

    def gated_norm(self, path: str, x: Edge, name: str, gate: Edge, activation: str) -> Edge:
        """RMS norm of every head, times silu(gate) or sigmoid(gate)."""
