#!/usr/bin/env python3
"""Two forms of multi-head latent attention in ONNX Runtime: absorbed, and expanded into padded heads.

    python benchmarks/latent.py [--shape moonlight|kimi-k2] [--runs 20]

One layer's attention after q and the latent are there, as decode (one token) at several lengths of context, and as
prefill of 512 tokens. Absorbed: per-head float32 products with k_b and v_b around one shared key of rope + kv_lora
dimensions. Expanded: kv_b as int4, keys and values of nope + rope dimensions for every head, values padded. Runs take
turns; medians. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import numpy as np
import onnxruntime as ort

from sampan.convert.formats.onnx.graph import CONTRIB, FLOAT, INT32, Edge, Graph

SHAPES = {"moonlight": 16, "kimi-k2": 64}  # heads; the other dimensions are the same
NOPE, ROPE, V, LORA = 128, 64, 128, 512
CONTEXTS = (16, 512, 4096)


def common(g: Graph, heads: int) -> tuple[Edge, Edge, Edge, list[Edge]]:
    q = g.input("q", FLOAT, (1, "s", heads, NOPE + ROPE))
    latent, k_rope = g.input("latent", FLOAT, (1, "s", LORA)), g.input("k_rope", FLOAT, (1, "s", ROPE))
    rope = [g.input(n, FLOAT, ("c", ROPE // 2)) for n in ("cos", "sin")]
    return q, latent, k_rope, [g.input("last", INT32, (1,)), g.input("total", INT32, (1,)), *rope]


def attend(g: Graph, qkv: list[Edge], tail: list[Edge], heads: int, kv: int, width: int, out: Edge | None) -> Edge:
    past = [g.input(f"past.{n}", FLOAT, (1, kv, "p", width)) for n in ("key", "value")]
    present = [g.output(f"present.{n}", FLOAT, (1, kv, "t", width)) for n in ("key", "value")]
    return g.node(
        "GroupQueryAttention", "/attn", [*qkv, *past, *tail], (1, "s", heads * width), domain=CONTRIB, more=present,
        out=out, num_heads=heads, kv_num_heads=kv, do_rotary=1, rotary_interleaved=1, scale=(NOPE + ROPE) ** -0.5,
    )  # fmt: skip


def absorbed(heads: int, rng: np.random.Generator) -> tuple[Graph, tuple[int, int]]:
    g, width = Graph(), ROPE + LORA
    q, latent, k_rope, tail = common(g, heads)
    out = g.output("y", FLOAT, (1, "s", heads, V))
    k_b = g.constant("k_b", rng.standard_normal((heads, LORA, NOPE), np.float32))
    v_b = g.constant("v_b", rng.standard_normal((heads, V, LORA), np.float32))
    nope, q_rope = Edge("nope", FLOAT, (1, "s", heads, NOPE)), Edge("q_rope", FLOAT, (1, "s", heads, ROPE))
    g.node("Split", "/q", [q, g.ints(NOPE, ROPE)], (), out=nope, more=[q_rope], axis=-1)
    key = g.node("Concat", "/key", [k_rope, latent], (1, "s", width), axis=-1)

    def each(path: str, x: Edge, w: Edge, to: Edge | None = None) -> Edge:
        t = g.node("Transpose", f"{path}/in", [x], (1, heads, "s", x.shape[3]), perm=[0, 2, 1, 3])
        y = g.node("FusedMatMul", path, [t, w], (1, heads, "s", w.shape[1]), domain=CONTRIB, transB=1)
        return g.node("Transpose", f"{path}/out", [y], (1, "s", heads, w.shape[1]), out=to, perm=[0, 2, 1, 3])

    query = g.node("Concat", "/query", [q_rope, each("/k_b", nope, k_b)], (1, "s", heads, width), axis=-1)
    flat = g.node("Reshape", "/query", [query, g.ints(1, -1, heads * width)], (1, "s", heads * width))
    y = attend(g, [flat, key, key], tail, heads, 1, width, None)
    by_head = g.node("Reshape", "/out", [y, g.ints(1, -1, heads, width)], (1, "s", heads, width))
    garbage, value = Edge("garbage", FLOAT, (1, "s", heads, ROPE)), Edge("value", FLOAT, (1, "s", heads, LORA))
    g.node("Split", "/out", [by_head, g.ints(ROPE, LORA)], (), out=garbage, more=[value], axis=-1)
    each("/v_b", value, v_b, out)
    return g, (1, width)


def expanded(heads: int, rng: np.random.Generator) -> tuple[Graph, tuple[int, int]]:
    g, width = Graph(), NOPE + ROPE
    q, latent, k_rope, tail = common(g, heads)
    out = g.output("y", FLOAT, (1, "s", heads * width))
    rows = heads * (NOPE + V)
    w = g.constant("kv_b", rng.integers(0, 256, (rows, LORA // 32, 16), dtype=np.uint8))
    scales = g.constant("scales", rng.random((rows, LORA // 32), np.float32) / 100)
    kv = g.node(
        "MatMulNBits", "/kv_b", [latent, w, scales], (1, "s", rows), domain=CONTRIB, K=LORA, N=rows, bits=4,
        block_size=32, accuracy_level=4,
    )  # fmt: skip
    by_head = g.node("Reshape", "/kv", [kv, g.ints(1, -1, heads, NOPE + V)], (1, "s", heads, NOPE + V))
    k, v = Edge("k", FLOAT, (1, "s", heads, NOPE)), Edge("v", FLOAT, (1, "s", heads, V))
    g.node("Split", "/kv", [by_head, g.ints(NOPE, V)], (), out=k, more=[v], axis=-1)
    nope, q_rope = Edge("nope", FLOAT, (1, "s", heads, NOPE)), Edge("q_rope", FLOAT, (1, "s", heads, ROPE))
    g.node("Split", "/q", [q, g.ints(NOPE, ROPE)], (), out=nope, more=[q_rope], axis=-1)
    one = g.node("Reshape", "/k_rope", [k_rope, g.ints(1, -1, 1, ROPE)], (1, "s", 1, ROPE))
    shared = g.node("Tile", "/k_rope", [one, g.ints(1, 1, heads, 1)], (1, "s", heads, ROPE))
    pads = g.constant("pads", np.array([0, 0, 0, 0, 0, 0, 0, ROPE], np.int64))
    parts = [
        g.node("Concat", "/query", [q_rope, nope], (1, "s", heads, width), axis=-1),
        g.node("Concat", "/key", [shared, k], (1, "s", heads, width), axis=-1),
        g.node("Pad", "/value", [v, pads], (1, "s", heads, width)),
    ]
    flat = [
        g.node("Reshape", f"/flat{n}", [p, g.ints(1, -1, heads * width)], (1, "s", heads * width))
        for n, p in enumerate(parts)
    ]
    attend(g, flat, tail, heads, heads, width, out)
    return g, (heads, width)


class Runner:
    """A session with its cache bound in place."""

    def __init__(
        self, graph: Graph, cache: tuple[int, int], heads: int, threads: int, rng: np.random.Generator
    ) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        model = graph.model("benchmark", "0").SerializeToString()
        self.session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self.kv, self.width, self.heads, self.rng = *cache, heads, rng

    def __call__(self, past: int, tokens: int) -> float:
        """Seconds of one call."""
        binding, keep = self.session.io_binding(), list[Any]()
        total = past + tokens

        def bind(name: str, array: np.ndarray) -> np.ndarray:
            keep.append(array)
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            return array

        normal = self.rng.standard_normal
        bind("q", normal((1, tokens, self.heads, NOPE + ROPE), np.float32))
        bind("latent", normal((1, tokens, LORA), np.float32))
        bind("k_rope", normal((1, tokens, ROPE), np.float32))
        angles = np.arange(total, dtype=np.float32)[:, None] * 10000 ** -(np.arange(ROPE // 2, dtype=np.float32) / 32)
        bind("cos", np.cos(angles))
        bind("sin", np.sin(angles))
        bind("last", np.array([total - 1], np.int32))
        bind("total", np.array([total], np.int32))
        for n in ("key", "value"):
            array = bind(f"past.{n}", normal((1, self.kv, total, self.width), np.float32))
            binding.bind_output(f"present.{n}", "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("y", "cpu")
        start = time.perf_counter()
        self.session.run_with_iobinding(binding)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="moonlight")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    heads, rng, threads = SHAPES[options.shape], np.random.default_rng(0), os.cpu_count() or 1
    forms = [Runner(*form(heads, rng), heads, threads, rng) for form in (absorbed, expanded)]
    cache = [8 * f.kv * f.width for f in forms]
    print(f"Cache of a token and layer: absorbed {cache[0]} bytes, expanded {cache[1]} bytes.\n")
    print("| | absorbed | expanded | ratio |\n|---|---|---|---|")
    for what, past, tokens in [(f"decode at {c}", c, 1) for c in CONTEXTS] + [("prefill of 512", 0, 512)]:
        times: list[list[float]] = [[], []]
        for _ in range(options.runs + 2):
            for form, found in zip(forms, times, strict=True):
                found.append(form(past, tokens))
        a, b = (1000 * statistics.median(t[2:]) for t in times)
        print(f"| {what} | {a:.2f} ms | {b:.2f} ms | **{a / b:.2f}** |", flush=True)


if __name__ == "__main__":
    main()
