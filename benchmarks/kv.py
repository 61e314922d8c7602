#!/usr/bin/env python3
"""The number type of the key/value cache in ONNX Runtime's GroupQueryAttention on CPUs.

    python benchmarks/kv.py [--runs 30] [--threads 2]
    python benchmarks/kv.py drift F32 INT8 [--reference MODEL.gguf] [--threads 2]
    python benchmarks/kv.py speed F32 INT8 [--runs 6] [--threads 2]

F32 and INT8 are conversions of one model, with float32 and with int8 caches. `drift`: KLD and agreement of the most
probable token over 512 positions of each of validate's texts, all of them behind 512 tokens or more, also from a
reference. `speed`: decode and prefill behind several numbers of tokens, in turns in one process; caches hold zeros.

Without these words one layer's attention at Qwen3-0.6B's shape (16 heads, 8 for keys and values, 128 dimensions
each), with its cache bound in place: decode of one token at several depths. Types take turns; medians of milliseconds,
and the largest error against float32, relative to its largest output. int8 scales are inputs of the operator, one for
a tensor or one for each channel, the same for all tokens; here they are exact for what is in the cache, which nobody
knows beforehand.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from sampan import runtime
from sampan.table import table
from sampan.validate.metrics._scores import score
from sampan.validate.windows import built_in

HEADS, KV, WIDTH = 16, 8, 128
DEPTHS = (16, 512, 4096)
TEXTS, WINDOW, SCORED = ("en", "zh", "code"), 1024, 512
STEPS, PREFILL = 8, 128  # tokens of a turn, one by one and together
TYPES = {
    "f32": (TensorProto.FLOAT, ""), "f16": (TensorProto.FLOAT16, ""), "int8 tensor": (TensorProto.INT8, "PER_TENSOR"),
    "int8 channel": (TensorProto.INT8, "PER_CHANNEL"),
}  # fmt: skip


class Attention:
    """A session of one operator; `cache` holds keys and values of `depth` tokens, with room for one more."""

    def __init__(self, name: str, threads: int) -> None:
        kind, quantised = TYPES[name]
        self.kind, self.quantised = helper.tensor_dtype_to_np_dtype(kind), quantised
        compute = TensorProto.FLOAT16 if name == "f16" else TensorProto.FLOAT
        self.compute = helper.tensor_dtype_to_np_dtype(compute)
        value = helper.make_tensor_value_info
        inputs = [
            value("query", compute, [1, 1, HEADS * WIDTH]),
            *(value(n, compute, [1, 1, KV * WIDTH]) for n in ("key", "value")),
        ]
        inputs += [value(f"past_{n}", kind, [1, KV, "p", WIDTH]) for n in ("key", "value")]
        inputs += [value(n, TensorProto.INT32, [1]) for n in ("last", "total")]
        names, more = [i.name for i in inputs], {}
        if quantised:
            shape = [1] if quantised == "PER_TENSOR" else [KV * WIDTH]
            scales = [value(f"{n}_scale", TensorProto.FLOAT, shape) for n in ("k", "v")]
            inputs += scales
            names += [*[""] * 5, *(s.name for s in scales)]
            more = {"k_quant_type": quantised, "v_quant_type": quantised, "kv_cache_bit_width": 8}
        outputs = [value("y", compute, None), *(value(f"present_{n}", kind, None) for n in ("key", "value"))]
        node = helper.make_node(
            "GroupQueryAttention",
            names,
            [o.name for o in outputs],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV,
            **more,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=opsets, ir_version=10)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        self.session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])

    def __call__(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
        """Seconds of a token at the end of `keys` and `values` [KV, depth + 1, WIDTH], float32; and its output."""
        binding, keep, depth = self.session.io_binding(), list[Any](), keys.shape[1] - 1

        def bind(name: str, array: np.ndarray) -> np.ndarray:
            keep.append(array)
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            return array

        binding.bind_output("y", "cpu")
        bind("query", q.astype(self.compute))
        for short, name, x in (("k", "key", keys), ("v", "value", values)):
            bind(name, np.ascontiguousarray(x[:, -1]).reshape(1, 1, -1).astype(self.compute))
            if self.quantised:
                axis = (0, 1, 2) if self.quantised == "PER_TENSOR" else 1
                scale = np.abs(x).max(axis=axis, keepdims=True) / 127
                bind(f"{short}_scale", scale.reshape(-1).astype(np.float32))
                x = np.rint(x / scale)
            cache = bind(f"past_{name}", np.ascontiguousarray(x[None].astype(self.kind)))
            binding.bind_output(f"present_{name}", "cpu", 0, cache.dtype, cache.shape, cache.ctypes.data)
        bind("last", np.array([depth], np.int32))
        bind("total", np.array([depth + 1], np.int32))
        began = time.perf_counter()
        self.session.run_with_iobinding(binding)
        return time.perf_counter() - began, binding.get_outputs()[0].numpy().astype(np.float32)


def drift(paths: dict[str, Path], threads: int) -> None:
    """KLD from the folder with float32 caches, and of that from a reference."""
    options = runtime.EngineOptions(context=WINDOW, threads=threads)
    exact = runtime.EngineOptions(context=WINDOW, threads=threads, kv="f32", flash_attention=False)
    opened = {n: runtime.open(p, exact if n == "reference" else options) for n, p in paths.items()}
    pairs = [("reference", "f32"), ("f32", "int8"), ("reference", "int8")]
    lines: list[list[object]] = [["text", "from", "to", "KLD", "±", "same token"]]
    found: dict[tuple[str, str], list[np.ndarray]] = {p: [] for p in pairs if set(p) <= set(opened)}
    for text in TEXTS:
        ids = opened["f32"].tokenize(built_in(f"{text}.txt"))[: WINDOW + 1]
        following = np.array(ids[WINDOW - SCORED + 1 :])
        slices = {n: s.logit_slices(ids[:WINDOW], first=WINDOW - SCORED) for n, s in opened.items()}
        logits = {n: np.concatenate(list(s)) for n, s in slices.items()}
        for pair, all_of_them in found.items():
            all_of_them.append(score(logits[pair[0]], logits[pair[1]], following)[:, :2])
            lines.append([text, *pair, *_means(all_of_them[-1])])
            print(*lines[-1], flush=True)
    print()
    lines += [["all", *pair, *_means(np.concatenate(parts))] for pair, parts in found.items()]
    print(table(lines, right="def"))
    for session in opened.values():
        session.close()


def _means(scores: np.ndarray) -> list[str]:
    """KLD, its standard error and the share of positions with the same first token; `scores` [n, 2]."""
    kld, same = scores.T
    return [f"{kld.mean():.5f}", f"{kld.std() / len(kld) ** 0.5:.5f}", f"{same.mean():.4f}"]


def speed(paths: dict[str, Path], runs: int, threads: int) -> None:
    """Decode and prefill behind so many tokens, in turns; the first turn counts for nothing."""
    context = DEPTHS[-1] + PREFILL
    how = runtime.EngineOptions(context=context, threads=threads)
    sessions = {n: runtime.open(p, how) for n, p in paths.items()}
    engines = {n: s._engine for n, s in sessions.items()}
    ids = np.random.default_rng(0).integers(0, 1000, context).tolist()
    lines: list[list[object]] = [
        ["behind", "cache", "ms a token", "least – greatest", f"prefill of {PREFILL}, tokens/s"]
    ]
    for depth in DEPTHS:
        found: dict[str, list[tuple[float, float]]] = {n: [] for n in engines}
        for e in engines.values():
            e.restore(depth, np.zeros(e.state_limit(depth), np.uint8))
        for _ in range(runs + 1):
            for n, e in engines.items():
                e.keep(depth)
                began = time.perf_counter()
                for step in range(STEPS):
                    e.evaluate([ids[depth + step]], 1)
                decoded = time.perf_counter()
                e.keep(depth)
                middle = time.perf_counter()
                e.evaluate(ids[depth : depth + PREFILL], 1)
                found[n].append(((decoded - began) / STEPS, PREFILL / (time.perf_counter() - middle)))
        for n, both in found.items():
            decode, prefill = zip(*both[1:], strict=True)
            span = f"{1e3 * min(decode):.1f} – {1e3 * max(decode):.1f}"
            middle, rate = statistics.median(decode), statistics.median(prefill)
            lines.append([depth, n, f"{1e3 * middle:.1f}", span, f"{rate:.0f}"])
            print(*lines[-1], flush=True)
    print()
    print(table(lines, right="ace"))
    for session in sessions.values():
        session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("what", nargs="?", choices=("drift", "speed"))
    parser.add_argument("folders", nargs="*", type=Path, metavar="F32 INT8")
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()
    if options.what:
        paths = dict(zip(("f32", "int8"), options.folders, strict=True))
        if options.what == "speed":
            speed(paths, options.runs, options.threads)
        else:
            drift(paths | ({"reference": options.reference} if options.reference else {}), options.threads)
        return
    rng = np.random.default_rng(0)
    forms: dict[str, Attention] = {}
    for name in TYPES:
        try:
            forms[name] = Attention(name, options.threads)
        except Exception as e:
            print(f"{name}: {e}")
    lines: list[list[object]] = [["depth", "cache", "ms", "to f32", "bytes of a token and layer", "error"]]
    for depth in DEPTHS:
        q = rng.standard_normal((1, 1, HEADS * WIDTH), np.float32)
        keys, values = (rng.standard_normal((KV, depth + 1, WIDTH), np.float32) for _ in range(2))
        found: dict[str, list[float]] = {name: [] for name in forms}
        out: dict[str, np.ndarray] = {}
        for _ in range(options.runs + 2):
            for name, form in forms.items():
                seconds, out[name] = form(q, keys, values)
                found[name].append(seconds)
        base = statistics.median(found["f32"][2:])
        for name, times in found.items():
            middle = statistics.median(times[2:])
            error = np.abs(out[name] - out["f32"]).max() / np.abs(out["f32"]).max()
            size = 2 * KV * WIDTH * forms[name].kind.itemsize
            lines.append([depth, name, f"{1e3 * middle:.2f}", f"{middle / base:.2f}", size, f"{error:.4f}"])
    print(table(lines, right="acdef"))


if __name__ == "__main__":
    main()
