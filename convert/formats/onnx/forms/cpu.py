"""The form of a graph for ONNX Runtime's CPU provider: what blocks ask for, as its fastest operators.

Blocks speak of linear layers, norms, attention and experts; a form writes the nodes. Activations are float32
[1, sequence, width].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sampan.errors import wrong
from sampan.quantize import TensorType, tensor_type
from sampan.quantize.blocked import BlockType

from ....architecture import EMBEDDING, Architecture, MoE, Rope
from ..graph import CONTRIB, FLOAT, INT8, INT32, INT64, Edge, Graph
from ..rope import tables
from ..weights import Weights

SCALES = 12  # GroupQueryAttention's input from which the scales of an int8 cache stand


class Cpu:
    """Writes into `graph` with the weights of `weights`. `accuracy`: every product's level. `int8`: caches of that
    type, whose scales, one for each channel, are left zero for `caches.scales` to find.
    """

    def __init__(
        self, graph: Graph, weights: Weights, arch: Architecture, context: int, accuracy: int, *, int8: bool = False
    ) -> None:
        self.graph, self.weights, self._int8 = graph, weights, int8
        self._eps, self._accuracy = arch.norm_eps, accuracy
        self._tables = {
            rope: [
                weights.table(graph, f"/rope{n or ''}/{name}", values)
                for name, values in zip(("cos", "sin"), tables(rope, context), strict=True)
            ]
            for n, rope in enumerate(arch.ropes)
        }
        self.ids = graph.input("input_ids", INT64, (1, "sequence"))
        self._logits = graph.output("logits", FLOAT, (1, "wanted", arch.vocab))
        mask = graph.input("attention_mask", INT64, (1, "total"))
        g, at = graph, "/attn_mask"
        shape = g.node("Shape", at, [mask], (2,), INT64)
        total = g.node("Gather", at, [shape, g.constant("/constants/one", np.array(1, np.int64))], (), INT64)
        self._total = g.node("Cast", f"{at}/total", [total], (), INT32, to=INT32)
        last = g.node("Sub", at, [total, g.constant("/constants/one", np.array(1, np.int64))], (), INT64)
        flat = g.node("Reshape", at, [last, g.ints(1)], (1,), INT64)
        self._last = g.node("Cast", f"{at}/last", [flat], (1,), INT32, to=INT32)
        # a mask of 1 + n instead of 1 asks for logits from position n only: see docs/decisions.md
        highest = g.node("ReduceMax", at, [mask], (), INT64, keepdims=0)
        top = g.node("Reshape", f"{at}/from", [highest, g.ints(1)], (1,), INT64)
        self._first = g.node("Sub", f"{at}/from", [top, g.ints(1)], (1,), INT64)

    def embedding(self) -> Edge:
        w, kind, at = self.weights, self.weights.kind(EMBEDDING), "/embed_tokens"
        arrays = w.rows(self.graph, at, EMBEDDING, kind)
        out = (1, "sequence", w.columns_of(EMBEDDING))
        if isinstance(kind, BlockType):
            values, scales, *zero = arrays
            return self.graph.node(
                "GatherBlockQuantized", at, [values, self.ids, scales, *zero], out, domain=CONTRIB,
                bits=kind.width, block_size=kind.block, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
        rows = self.graph.node("Gather", at, [arrays[0], self.ids], out, arrays[0].type)
        return rows if rows.type == FLOAT else self.graph.node("Cast", at, [rows], out, to=FLOAT)

    def wanted(self, *edges: Edge) -> list[Edge]:
        """The positions whose logits are wanted."""
        g = self.graph
        return [
            g.node(
                "Slice", f"/wanted/{n}", [e, self._first, g.ints(2**62), g.ints(1)], (1, "wanted", e.shape[-1])
            )
            for n, e in enumerate(edges)
        ]  # fmt: skip

    def linear(self, path: str, x: Edge, *names: str, bias: Sequence[str] = (), out: Edge | None = None) -> Edge:
        """x · Wᵀ + b of one or several canonical weights of one type, their rows stacked."""
        kind = self.weights.kind(names[0])
        b = self.weights.vector(self.graph, path, *bias) if bias else None
        rows = sum(self.weights.rows_of(n) for n in names)
        shape = (*x.shape[:-1], rows)
        arrays = self.weights.matrix(self.graph, path, names, kind)
        if isinstance(kind, BlockType):
            values, scales, *zero = arrays
            inputs: list[Edge | None] = [x, values, scales, *zero]
            if b:
                inputs += [None] * (5 - len(inputs)) + [b]
            return self.graph.node(
                "MatMulNBits", path, inputs, shape, domain=CONTRIB, out=out, K=x.shape[-1], N=rows, bits=kind.width,
                block_size=kind.block, accuracy_level=self._level(path, kind),
            )  # fmt: skip
        w = self._float(path, *arrays)
        y = self.graph.node("FusedMatMul", path, [x, w], shape, domain=CONTRIB, out=None if b else out, transB=1)
        return self.graph.node("Add", path, [y, b], shape, out=out) if b else y

    def together(self, *names: str) -> bool:
        """Whether some weights can be one linear layer."""
        return len({self.weights.kind(n).name for n in names}) == 1

    def norm(self, path: str, x: Edge, name: str, eps: float | None = None) -> Edge:
        """RMS norm over the last dimension, with the model's epsilon or another."""
        scale, eps = self.weights.vector(self.graph, path, name), self._eps if eps is None else eps
        return self.graph.node("RMSNormalization", path, [x, scale], x.shape, axis=-1, epsilon=eps)

    def add_norm(self, path: str, x: Edge, delta: Edge, name: str) -> tuple[Edge, Edge]:
        """(x + delta, its RMS norm)."""
        scale = self.weights.vector(self.graph, path, name)
        total = Edge(f"{path}/sum", FLOAT, x.shape)
        normed = self.graph.node(
            "SkipSimplifiedLayerNormalization", path, [x, delta, scale], x.shape, domain=CONTRIB,
            more=[None, None, total], epsilon=self._eps,
        )  # fmt: skip
        return total, normed

    def head_norm(self, path: str, x: Edge, name: str, heads: int) -> Edge:
        """RMS norm of every head of [1, sequence, heads · width]."""
        scale = self.weights.vector(self.graph, path, name)
        return self.graph.node(
            "BranchwiseRMSNorm", path, [x, scale], x.shape, domain=CONTRIB, num_branches=heads, epsilon=self._eps
        )

    def heads(self, path: str, x: Edge, heads: int) -> Edge:
        """[1, sequence, heads · width] → [1, sequence, heads, width]."""
        width = int(x.shape[-1]) // heads
        shape = (1, x.shape[1], heads, width)
        return self.graph.node("Reshape", path, [x, self.graph.ints(1, -1, heads, width)], shape)

    def join(self, path: str, x: Edge) -> Edge:
        """[1, sequence, heads, width] → [1, sequence, heads · width]."""
        width = int(x.shape[2]) * int(x.shape[3])
        return self.graph.node("Reshape", path, [x, self.graph.ints(1, -1, width)], (1, x.shape[1], width))

    def repeat(self, path: str, x: Edge, heads: int) -> Edge:
        """[1, sequence, 1, width] → the same for every head."""
        return self.graph.node("Tile", path, [x, self.graph.ints(1, 1, heads, 1)], (*x.shape[:2], heads, x.shape[3]))

    def _pad(self, path: str, x: Edge, width: int) -> Edge:
        """Zeros after the last dimension of heads, up to `width`."""
        more = width - int(x.shape[-1])
        if len(x.shape) != 4 or not more:  # joined heads are of full width
            return x
        return self.graph.node("Pad", path, [x, self.graph.ints(*[0] * 7, more)], (*x.shape[:-1], width))

    def concat(self, path: str, *parts: Edge) -> Edge:
        """Along the last dimension."""
        shape = (*parts[0].shape[:-1], sum(int(p.shape[-1]) for p in parts))
        return self.graph.node("Concat", path, parts, shape, axis=-1)

    def split(self, path: str, x: Edge, *widths: int) -> list[Edge]:
        """Cut the last dimension."""
        parts = [Edge(f"{path}/Split/output_{n}", x.type, (*x.shape[:-1], w)) for n, w in enumerate(widths)]
        self.graph.node("Split", path, [x, self.graph.ints(*widths)], (), out=parts[0], more=parts[1:], axis=-1)
        return parts

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
        """Values are padded to the width of keys, as GroupQueryAttention wants them."""
        for what, n in (("heads", head_dim), ("rotations", rope.dims if rope else 0)):
            if n % 16:
                raise wrong("--to onnx", f"{what} of a multiple of 16 dimensions, as GroupQueryAttention takes them", n)
        g, parts, v_dim = self.graph, ("key", "value"), head_dim if v_dim is None else v_dim
        if len(qkv) == 3:
            q, k, v = qkv
            v = self._pad(f"{path}/value", v, head_dim)
            qkv = [q, self._joined(f"{path}/key/join", k), self._joined(f"{path}/value/join", v)]
        kind = INT8 if self._int8 else FLOAT
        past = [g.input(f"past_key_values.{layer}.{n}", kind, (1, kv_heads, "past", head_dim)) for n in parts]
        present = [g.output(f"present.{layer}.{n}", kind, (1, kv_heads, "total", head_dim)) for n in parts]
        inputs: list[Edge | None] = [*[*qkv, None, None][:3], *past, self._last, self._total]
        more: dict[str, Any] = {} if scale is None else {"scale": scale}
        if rope:
            more |= {"do_rotary": 1, "rotary_interleaved": int(rope.interleaved)}
            inputs += self._tables[rope]
        if self._int8:
            inputs += [None] * (SCALES - len(inputs))
            inputs += [g.constant(f"{path}/{n}/scale", np.zeros(kv_heads * head_dim, np.float32)) for n in parts]
            more |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        y = g.node(
            "GroupQueryAttention", path, inputs, (1, "sequence", heads * head_dim), domain=CONTRIB, more=present,
            num_heads=heads, kv_num_heads=kv_heads, **more,
        )  # fmt: skip
        if v_dim == head_dim:
            return y
        y = self.split(f"{path}/out", self.heads(f"{path}/out/heads", y, heads), v_dim, head_dim - v_dim)[0]
        return self.join(f"{path}/out/join", y)

    def _joined(self, path: str, x: Edge) -> Edge:
        """Heads that may be joined already."""
        return self.join(path, x) if len(x.shape) == 4 else x

    def convolution(self, path: str, layer: int, x: Edge, *names: str) -> Edge:
        """silu of a causal convolution of each channel of [1, sequence, channels]; its last inputs are a state.

        `names`: the taps of some channels, of the next ones, …
        """
        g, kernel = self.graph, self.weights.kernel(self.graph, path, names)
        shape = (1, int(kernel.shape[2]) - 1, int(x.shape[-1]))
        past = g.input(f"past_conv.{layer}", FLOAT, shape)
        present = g.output(f"present_conv.{layer}", FLOAT, shape)
        return g.node(
            "CausalConvWithState", path, [x, kernel, None, past], x.shape, domain=CONTRIB, more=[present], ndim=1,
            activation="silu", channels_last=1,
        )  # fmt: skip

    def unit_heads(self, path: str, x: Edge, heads: int) -> Edge:
        """Every head of [1, sequence, heads · width] divided by its length: x / √(Σx² + 1e-6)."""
        width = int(x.shape[-1]) // heads
        scale = self.graph.constant(f"/constants/unit_{width}", np.full(width, width**-0.5, np.float32))
        return self.graph.node(
            "BranchwiseRMSNorm", path, [x, scale], x.shape, domain=CONTRIB, num_branches=heads, epsilon=1e-6 / width
        )

    def decay(self, path: str, alpha: Edge, a: str, bias: str, *, heads: int | None = None) -> Edge:
        """a · softplus(alpha + bias), in alpha's shape; with `heads` a is of [heads, 1], one for a head's width."""
        g, w = self.graph, self.weights
        shifted = self.add(f"{path}/bias", alpha, w.vector(self.graph, f"{path}/bias", bias))
        positive = g.node("Softplus", path, [shifted], alpha.shape)
        if heads is None:
            return self.multiply(path, positive, w.vector(self.graph, f"{path}/a", a))
        (by_head,) = w.matrix(self.graph, f"{path}/a", [a], tensor_type("f32"))
        return self.join(f"{path}/join", self.multiply(path, self.heads(f"{path}/heads", positive, heads), by_head))

    def delta_rule(
        self,
        path: str,
        layer: int,
        qkv: tuple[Edge, Edge, Edge],
        decay: Edge,
        beta: Edge,
        sizes: tuple[int, int, int, int],
    ) -> Edge:
        """The recurrence of DeltaNet and KDA, [1, sequence, v_heads · v_dim]. `decay`: of each head of v, or of each of
        its dimensions of k; `sizes`: heads of k and of v, width of k and of v.
        """
        k_heads, v_heads, k_dim, v_dim = sizes
        g, shape = self.graph, (1, v_heads, k_dim, v_dim)
        past = g.input(f"past_recurrent.{layer}", FLOAT, shape)
        present = g.output(f"present_recurrent.{layer}", FLOAT, shape)
        return g.node(
            "LinearAttention", path, [*qkv, past, decay, beta], qkv[2].shape, domain=CONTRIB, more=[present],
            q_num_heads=k_heads, kv_num_heads=v_heads, update_rule="gated_delta", scale=k_dim**-0.5,
        )  # fmt: skip

    def gated_norm(self, path: str, x: Edge, name: str, gate: Edge, activation: str) -> Edge:
        """RMS norm of every head, times silu(gate) or sigmoid(gate)."""
        scale = self.weights.vector(self.graph, path, name)
        return self.graph.node(
            "GatedRMSNorm", path, [x, scale, gate], x.shape, domain=CONTRIB, activation=activation, epsilon=self._eps
        )

    def gated(self, path: str, gate: Edge, up: Edge) -> Edge:
        """silu(gate) · up."""
        silu = self.graph.node("QuickGelu", path, [gate], gate.shape, domain=CONTRIB, alpha=1.0)
        return self.multiply(path, silu, up)

    def multiply(self, path: str, a: Edge, b: Edge) -> Edge:
        return self.graph.node("Mul", path, [a, b], a.shape)

    def add(self, path: str, a: Edge, b: Edge) -> Edge:
        return self.graph.node("Add", path, [a, b], a.shape)

    def sigmoid(self, path: str, x: Edge) -> Edge:
        return self.graph.node("Sigmoid", path, [x], x.shape)

    def route(self, path: str, logits: Edge, moe: MoE, bias: str) -> Edge:
        """The router's logits [1, sequence, experts] → what `experts` chooses by, [tokens, experts].

        Sigmoid gating: ln of the chosen experts' scores, and next to nothing elsewhere, so that a softmax over the
        chosen gives their shares. `bias` names what is added to the scores for the choice only.
        """
        g, shape = self.graph, (logits.shape[1], moe.experts)
        flat = g.node("Reshape", path, [logits, g.ints(-1, moe.experts)], shape)
        if moe.gating == "softmax":
            return flat
        if moe.selection_bias:
            b = self.weights.vector(self.graph, path, bias)
        else:
            b = g.constant(f"/constants/no_bias_{moe.experts}", np.zeros(moe.experts, np.float32))
        return g.node(
            "MoEGroupRouter", path, [flat, b], shape, domain=CONTRIB, top_k=moe.used, n_group=moe.groups,
            topk_group=moe.groups_used, group_topk=2,
        )  # fmt: skip

    def experts(self, path: str, x: Edge, flat: Edge, moe: MoE, gate: str, up: str, down: str) -> Edge:
        """The chosen experts of every token, weighted; `flat` from `route`."""
        g, w, sigmoid = self.graph, self.weights, moe.gating == "sigmoid"
        kinds: set[TensorType] = {w.kind(n) for n in (gate, up, down)}
        kind = tensor_type("f32") if len(kinds) > 1 else w.kind(gate)  # one operator takes one type
        first, second = w.experts(g, f"{path}/gate_up", (gate, up), kind), w.experts(g, f"{path}/down", (down,), kind)
        options: dict[str, Any] = {
            "k": moe.used, "normalize_routing_weights": int(moe.normalise or sigmoid), "activation_type": "swiglu",
            "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0,
        }  # fmt: skip
        if isinstance(kind, BlockType):
            (w1, s1, *z1), (w2, s2, *z2) = first, second
            zero: list[Edge | None] = [*z1, *z2, None] if z1 else [None] * 3
            # without normalisation the operator's own routing differs from the models' softmax over all experts
            plain = not options["normalize_routing_weights"]
            shares = [g.node("Softmax", f"{path}/router", [flat], flat.shape, axis=-1)] if plain else []
            more = [None, None, None, *zero, *shares] if z1 or shares else []
            y = g.node(
                "QMoE", path, [x, flat, w1, s1, None, w2, s2, None, *more], x.shape, domain=CONTRIB,
                expert_weight_bits=kind.width, block_size=kind.block, accuracy_level=self._level(path, kind), **options,
            )  # fmt: skip
        else:
            w1, w2 = (self._float(f"{path}/{n}", a) for n, (a,) in (("gate_up", first), ("down", second)))
            y = g.node("MoE", path, [x, flat, w1, None, w2], x.shape, domain=CONTRIB, **options)
        return self._scaled(path, y, flat, moe) if sigmoid else y

    def _scaled(self, path: str, y: Edge, flat: Edge, moe: MoE) -> Edge:
        """Times the routed scale, and times the sum of the chosen scores where they are not normalised."""
        g = self.graph
        if not moe.normalise:
            scores = g.node("Exp", f"{path}/scores", [flat], flat.shape)
            total = g.node("ReduceSum", f"{path}/scores", [scores, g.ints(1)], (flat.shape[0], 1), keepdims=1)
            by_token = g.node("Unsqueeze", f"{path}/scores", [total, g.ints(0)], (1, flat.shape[0], 1))
            y = self.multiply(f"{path}/scores", y, by_token)
        if moe.scale == 1:
            return y
        factor = g.constant(f"/constants/scale_{moe.scale!r}", np.array(moe.scale, np.float32))
        return self.multiply(f"{path}/scale", y, factor)

    def _level(self, path: str, kind: BlockType) -> int:
        if kind.width != 4 and self._accuracy == 0:
            raise wrong(
                "--accuracy-level", "4 for 8-bit weights", f"0, at which {path} would be about 300 times slower"
            )
        return self._accuracy

    def _float(self, path: str, w: Edge) -> Edge:
        return w if w.type == FLOAT else self.graph.node("Cast", f"{path}/weight", [w], w.shape, to=FLOAT)

    def logits(self, x: Edge, name: str) -> None:
        self.linear("/lm_head", x, name, out=self._logits)
