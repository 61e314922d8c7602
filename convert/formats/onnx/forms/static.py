"""The form of a graph for NPU compilers: every size is fixed, every operator is ONNX's own.

A graph takes `tokens` tokens after a cache of `context` slots and gives their keys and values, not the whole cache: who
runs it puts them into their slots, and says in the mask which slots hold something. Embedding and rotary tables are
looked up outside. Activations are float32 here, [tokens, width]; `qdq` makes the integers. The model may be cut between
two layers into parts, each with a graph and a data file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sampan.errors import wrong
from sampan.quantize.channel import ChannelType

from ....architecture import Architecture, Rope
from ..centres import subtracted
from ..channels import Channels, DataFile
from ..graph import FLOAT, OPSET, UINT16, Edge, Graph
from ..rope import tables

BLOCKS = ("dense", "gqa", "mla")  # kinds of blocks that it can write
HIDDEN, MASK, LOGITS = "hidden", "mask", "logits"


class Static:
    """`files`: the data file of each part; `cuts`: the norm that a part begins with → its number.

    What it notes for `qdq`: `fixed`, ranges that are known; `caches`, edges that stand in the cache; `masked`, scores
    after the mask was added; `keys`, edges that a centre is subtracted from; `signed`, edges of signed codes around 0;
    `floats`, edges that stay floats: the residual stream.
    """

    opset = OPSET

    def __init__(
        self,
        weights: Channels,
        arch: Architecture,
        context: int,
        tokens: int,
        files: Sequence[DataFile],
        cuts: Mapping[str, int],
    ) -> None:
        self.weights, self.context, self.tokens = weights, context, tokens
        self.graphs = [Graph(files[0].name, self.opset)]
        self.fixed: dict[str, tuple[float, float]] = {}
        self.caches: list[str] = []
        self.masked: list[str] = []
        self.keys: list[str] = []
        self.signed: list[str] = []
        self.floats = [HIDDEN]
        self._arch, self._files, self._cuts = arch, files, cuts
        self._inputs: dict[str, Edge] = {}  # and constants of the current graph

    @property
    def graph(self) -> Graph:
        """The one that is being written."""
        return self.graphs[-1]

    @property
    def _file(self) -> DataFile:
        return self._files[len(self.graphs) - 1]

    def _input(self, name: str, shape: tuple[int, ...]) -> Edge:
        """An input that the graph of a part has once."""
        if name not in self._inputs:
            self._inputs[name] = self.graph.input(name, FLOAT, shape)
        return self._inputs[name]

    def embedding(self) -> Edge:
        return self._input(HIDDEN, (self.tokens, self._arch.hidden))

    def wanted(self, *edges: Edge) -> list[Edge]:
        """All positions: the graph has one size."""
        return list(edges)

    def linear(self, path: str, x: Edge, *names: str, bias: Sequence[str] = ()) -> Edge:
        if len(names) > 1:
            each = [self.linear(f"{path}/{n}", x, name, bias=bias[n : n + 1]) for n, name in enumerate(names)]
            return self.concat(path, *each)
        y = self._product(path, x, names[0])
        if not bias:
            return y
        b = self.weights.array(self.graph, self._file, f"{path}/bias", bias[0])
        return self.graph.node("Add", f"{path}/bias", [y, b], y.shape)

    def _product(self, path: str, x: Edge, name: str, out: Edge | None = None) -> Edge:
        w, kind = self.weights.array(self.graph, self._file, path, name), self.weights.kind(name)
        shape = (self.tokens, self.weights.rows_of(name))
        if isinstance(kind, ChannelType) and kind.turned:
            return self.graph.node("MatMul", path, [x, w], shape, out=out)
        return self.graph.node("Gemm", path, [x, w], shape, out=out, transB=1)

    def together(self, *names: str) -> bool:
        """Each gets a range of its own."""
        return False

    def norm(self, path: str, x: Edge, name: str, eps: float | None = None) -> Edge:
        scale = self.weights.array(self.graph, self._file, path, name)
        eps = self._arch.norm_eps if eps is None else eps
        return self.graph.node("RMSNormalization", path, [x, scale], x.shape, axis=-1, epsilon=eps)

    def add_norm(self, path: str, x: Edge, delta: Edge, name: str) -> tuple[Edge, Edge]:
        total = Edge(f"{path}/sum", FLOAT, x.shape)
        self.floats.append(total.name)
        if name in self._cuts:
            self.graph.node("Add", path, [x, delta], x.shape, out=self.graph.output(*_parts(total)))
            self.graphs.append(Graph(self._files[len(self.graphs)].name, self.opset))
            self._inputs = {}
            total = self._input(total.name, (self.tokens, self._arch.hidden))
        else:
            self.graph.node("Add", path, [x, delta], x.shape, out=total)
        return total, self.norm(path, total, name)

    def head_norm(self, path: str, x: Edge, name: str, heads: int) -> Edge:
        """Before heads come in front of positions: a norm behind that Transpose is compiled wrongly (docs/npu.md)."""
        return self.join(f"{path}/join", self.norm(path, self.heads(f"{path}/heads", x, heads), name))

    def heads(self, path: str, x: Edge, heads: int) -> Edge:
        """[tokens, heads · width] → [1, tokens, heads, width]."""
        return self._reshape(path, x, 1, self.tokens, heads, int(x.shape[-1]) // heads)

    def join(self, path: str, x: Edge) -> Edge:
        return self._reshape(path, x, self.tokens, int(x.shape[2]) * int(x.shape[3]))

    def _cut(self, path: str, x: Edge, heads: int) -> Edge:
        """Heads that may be cut already."""
        return x if len(x.shape) == 4 else self.heads(path, x, heads)

    def repeat(self, path: str, x: Edge, heads: int) -> Edge:
        shape = (1, self.tokens, heads, int(x.shape[-1]))
        return self.graph.node("Expand", path, [x, self.graph.ints(*shape)], shape)

    def concat(self, path: str, *parts: Edge) -> Edge:
        shape = (*parts[0].shape[:-1], sum(int(p.shape[-1]) for p in parts))
        return self.graph.node("Concat", path, parts, shape, axis=-1)

    def split(self, path: str, x: Edge, *widths: int) -> list[Edge]:
        parts = [Edge(f"{path}/Split/output_{n}", x.type, (*x.shape[:-1], w)) for n, w in enumerate(widths)]
        self.graph.node("Split", path, [x, self.graph.ints(*widths)], (), out=parts[0], more=parts[1:], axis=-1)
        return parts

    def _reshape(self, path: str, x: Edge, *shape: int) -> Edge:
        return self.graph.node("Reshape", path, [x, self.graph.ints(*shape)], shape)

    def _transpose(self, path: str, x: Edge, *order: int) -> Edge:
        return self.graph.node("Transpose", path, [x], tuple(x.shape[i] for i in order), perm=order)

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
        """Keys lie [1, heads, width, slots], values [1, heads, slots, width]; query heads of one key head are rows."""
        g, v_dim, each = self.graph, head_dim if v_dim is None else v_dim, heads // kv_heads
        slots = self.context + self.tokens
        q = self._cut(f"{path}/query/heads", qkv[0], heads)
        k, v = (self._cut(f"{path}/{n}/heads", e, kv_heads) for n, e in zip(("key", "value"), qkv[1:], strict=True))
        if rope:
            q, k = self._rotate(f"{path}/query", q, rope), self._rotate(f"{path}/key", k, rope)
        q = g.node("Mul", f"{path}/query/scale", [q, self._factor(scale or head_dim**-0.5)], q.shape)
        q = self._transpose(f"{path}/query", q, 0, 2, 1, 3)
        q = self._reshape(f"{path}/query/groups", q, 1, kv_heads, each * self.tokens, head_dim)
        keys = self._cached(path, layer, "key", self._centred(f"{path}/key", k), (0, 2, 3, 1))
        values = self._cached(path, layer, "value", v, (0, 2, 1, 3))
        rows = (1, kv_heads, each * self.tokens)
        parts = [g.node("MatMul", f"{path}/scores/{n}", [q, k], (*rows, k.shape[3])) for n, k in enumerate(keys)]
        scores = self.concat(f"{path}/scores", *parts) if len(parts) > 1 else parts[0]
        scores = self._reshape(f"{path}/scores", scores, 1, heads, self.tokens, slots)
        mask = self._input(MASK, (1, 1, self.tokens, slots))
        scores = g.node("Add", f"{path}/scores", [scores, mask], scores.shape)
        self.masked.append(scores.name)
        shares = g.node("Softmax", path, [scores], scores.shape, axis=-1)
        self.fixed[shares.name] = (0, 1)
        shares = self._reshape(f"{path}/shares", shares, *rows, slots)
        parts = (
            self.split(f"{path}/shares", shares, *(int(v.shape[2]) for v in values)) if len(values) > 1 else [shares]
        )
        y, *more = (
            g.node("MatMul", f"{path}/mix/{n}", [p, v], (*rows, v_dim))
            for n, (p, v) in enumerate(zip(parts, values, strict=True))
        )
        for other in more:
            y = self.add(f"{path}/mix", y, other)
        y = self._reshape(f"{path}/mix", y, 1, heads, self.tokens, v_dim)
        return self.join(f"{path}/join", self._transpose(f"{path}/mix", y, 0, 2, 1, 3))

    def _centred(self, path: str, keys: Edge) -> Edge:
        self.keys.append(keys.name)
        return subtracted(self.graph, path, keys)

    def _factor(self, value: float) -> Edge:
        """A constant as the largest of 65,536 codes."""
        at = f"/constants/{value!r}"
        if at in self._inputs:
            return self._inputs[at]
        codes = self.graph.scalar(f"{at}/code", UINT16, 65535)
        scale = self.graph.scalar(f"{at}/scale", FLOAT, value / 65535)
        zero = self.graph.scalar("/constants/zero", UINT16, 0)
        self._inputs[at] = self.graph.node("DequantizeLinear", at, [codes, scale, zero], ())
        return self._inputs[at]

    def _cached(self, path: str, layer: int, what: str, new: Edge, order: tuple[int, ...]) -> list[Edge]:
        """What attention looks at, one after the other; what is new is an output too. `order` brings heads in front."""
        g, axis = self.graph, order.index(1)
        codes = g.node("Identity", f"{path}/{what}/cache", [new], new.shape)
        shape = [int(new.shape[i]) for i in order]
        turned = self._transpose(f"{path}/{what}", codes, *order)
        # a Reshape, which no Transpose moves over: one that the optimiser leaves at an output is not compiled
        present = g.output(f"present_{what}.{layer}", FLOAT, tuple(shape[1:]))
        g.node("Reshape", f"{path}/{what}/present", [turned, g.ints(*shape[1:])], present.shape, out=present)
        self.caches.append(present.name)
        shape[axis] = self.context
        past = self._input(f"past_{what}.{layer}", tuple(shape))
        return self._seen(f"{path}/{what}", past, turned, new, order)

    def _seen(self, path: str, past: Edge, turned: Edge, new: Edge, order: tuple[int, ...]) -> list[Edge]:
        """The cache, and what is new with 16 bits, since engines round few but some of 8 to another code.

        Signed: QNN's provider makes 8 bits of a product's second factor where both are unsigned.
        """
        codes = self.graph.node("Identity", f"{path}/new", [new], new.shape)
        self.signed.append(codes.name)
        return [past, self._transpose(f"{path}/new", codes, *order)]

    def _rotate(self, path: str, x: Edge, rope: Rope) -> Edge:
        """Pairs that stand next to each other end in two halves, in queries as in keys: their products are the same."""
        g, half, n = self.graph, rope.dims // 2, self._arch.ropes.index(rope)
        cos, sin = (self._table(f"{name}{n or ''}", rope) for name in ("cos", "sin"))
        rest = int(x.shape[-1]) - rope.dims
        turned, *kept = self.split(f"{path}/rotated", x, rope.dims, rest) if rest else [x]
        shape = (*x.shape[:-1], half)
        if rope.interleaved:
            a, b = (
                g.node("Slice", f"{path}/pairs/{i}", [turned, *(g.ints(v) for v in (i, rope.dims, -1, 2))], shape)
                for i in range(2)
            )
        else:
            a, b = self.split(f"{path}/halves", turned, half, half)
        products = {
            n: g.node("Mul", f"{path}/{n}", [e, t], shape)
            for n, e, t in (("a_cos", a, cos), ("b_sin", b, sin), ("b_cos", b, cos), ("a_sin", a, sin))
        }
        first = g.node("Sub", f"{path}/first", [products["a_cos"], products["b_sin"]], shape)
        second = g.node("Add", f"{path}/second", [products["b_cos"], products["a_sin"]], shape)
        return self.concat(f"{path}/rope", first, second, *kept)

    def _table(self, name: str, rope: Rope) -> Edge:
        """cos or sin of the positions, [1, tokens, 1, half]."""
        most = float(tables(rope, 1)[0].max())  # cos of 0, times what the rope multiplies by
        self.fixed[name] = (-most, most)
        return self._input(name, (1, self.tokens, 1, rope.dims // 2))

    def gated(self, path: str, gate: Edge, up: Edge) -> Edge:
        silu = self.multiply(f"{path}/silu", gate, self.sigmoid(f"{path}/silu", gate))
        return self.multiply(path, silu, up)

    def multiply(self, path: str, a: Edge, b: Edge) -> Edge:
        return self.graph.node("Mul", path, [a, b], a.shape)

    def add(self, path: str, a: Edge, b: Edge) -> Edge:
        return self.graph.node("Add", path, [a, b], a.shape)

    def sigmoid(self, path: str, x: Edge) -> Edge:
        y = self.graph.node("Sigmoid", path, [x], x.shape)
        self.fixed[y.name] = (0, 1)
        return y

    def logits(self, x: Edge, name: str) -> None:
        out = self.graph.output(LOGITS, FLOAT, (self.tokens, self.weights.rows_of(name)))
        self._product("/lm_head", x, name, out)


def check_blocks(arch: Architecture) -> None:
    """Refuse an architecture with blocks that this form has no operators for."""
    for part in (p for b in arch.blocks for p in (b.attention, b.ffn)):
        kind = type(part).__name__.lower()
        if kind not in BLOCKS:
            raise wrong("--target", f"blocks of the kinds {', '.join(BLOCKS)}", f"one of {kind}", "--to gguf has them")


def _parts(edge: Edge) -> tuple[str, int, tuple[int | str, ...]]:
    return edge.name, edge.type, edge.shape
