#!/usr/bin/env python3
"""ONNX folders beside those of onnxruntime-genai's own builder: export, speed, drift. Alternating runs, medians.

    pip install onnxruntime-genai==0.18.0 onnx_ir torch transformers
    python benchmarks/genai.py export CHECKPOINT [--schemes int4,int8] [--runs 3]
    python benchmarks/genai.py speed OURS THEIRS [--runs 3]
    python benchmarks/genai.py drift CHECKPOINT FOLDER… [--windows 2] [--level 0]
    python benchmarks/genai.py random CHECKPOINT OUT [--shape qwen3.5-0.8b]

`export` measures the whole processes: wall time, ru_maxrss, bytes of graph and data. `speed` runs our folder in our
runtime and the builder's in onnxruntime-genai, with as many threads: prefill and decode at two lengths of context.
`drift` is the KLD of folders from the checkpoint as float32 GGUF, in our runtime, each pair of folders also compared
over the same windows (an interval from 30 windows on); at level 0 activations stay in float32. `random` writes random
weights of Qwen3-0.6B's or Qwen3.5-0.8B's shape, with CHECKPOINT's tokenizer. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from huge import shards

from convert import OURS, measure, warm

BUILDER = "onnxruntime_genai.models.builder"
PRECISION = {"int4": ("int4", []), "int4_head8": ("int4", ["algo_config=k_quant_mixed"]), "int8": ("int8", [])}
CONTEXTS = (16, 512)
DECODED = 32  # tokens
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
        "max_position_embeddings": 40960, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645,
    },
    "qwen3.5-0.8b": {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "hidden_size": 1024,
        "intermediate_size": 3584, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "vocab_size": 248320,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 262144, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "attention_bias": False, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10], "mrope_interleaved": True,
        },
    },
}  # fmt: skip


def nbytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir() if f.name.startswith("model.onnx"))


def export(options: argparse.Namespace) -> None:
    """Whole exports, one after the other."""
    print("| scheme | builder | sampan | ratio | builder peak | sampan peak | ratio | builder bytes | sampan bytes |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work, source = Path(temporary), options.checkpoint
        for scheme in options.schemes.split(","):
            precision, extra = PRECISION[scheme]
            theirs, mine, sizes = [], [], {}
            for _ in range(options.runs):
                for name, runs, command in (
                    ("theirs", theirs, ["-m", BUILDER, "-i", str(source), "-o", str(work / "theirs"), "-p", precision,
                                        "-e", "cpu", "-c", str(work / "cache"),
                                        *(["--extra_options", *extra] if extra else [])]),
                    ("ours", mine, ["-c", OURS, "convert", str(source), "--to", "onnx", "--quant", scheme,
                                    "-o", str(work / "ours")]),
                ):  # fmt: skip
                    warm(source)
                    shutil.rmtree(work / name, ignore_errors=True)
                    runs.append(measure(sys.executable, *command))
                    sizes[name] = nbytes(work / name)
            a, b = (statistics.median(r[0] for r in x) for x in (theirs, mine))
            pa, pb = (max(r[1] for r in x) / 1e6 for x in (theirs, mine))
            print(
                f"| {scheme} | {a:.1f} s | {b:.1f} s | **{b / a:.2f}** | {pa:.0f} MB | {pb:.0f} MB | **{pb / pa:.2f}** "
                f"| {sizes['theirs']} | {sizes['ours']} |",
                flush=True,
            )


def random_weights(options: argparse.Namespace) -> None:
    """A checkpoint of a real shape with normal weights and the tokenizer of `like`."""
    import torch
    from safetensors.torch import save_file

    out = options.out
    out.mkdir()
    for file in options.like.glob("*.json"):
        if file.name.startswith(("tokenizer", "generation", "vocab")):
            shutil.copy(file, out)
    (out / "config.json").write_text(json.dumps(SHAPES[options.shape]))
    torch.manual_seed(0)
    tensors: dict[str, Any] = {}
    for name, dtype, shape in (t for _, _, found in shards(out) for t in found):
        kind = torch.float32 if dtype == "F32" else torch.bfloat16
        made = torch.randn(shape) * shape[-1] ** -0.5 if len(shape) > 1 else torch.ones(shape)
        tensors[name] = made.to(kind)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def speed(options: argparse.Namespace) -> None:
    """Prefill of a prompt and decode after it, in fresh processes, ours and theirs in turn."""
    found: dict[str, list[Any]] = {"theirs": [], "ours": []}
    for _ in range(options.runs):
        for name, folder in (("theirs", options.theirs), ("ours", options.ours)):
            out = subprocess.check_output([sys.executable, __file__, name, str(folder)], stderr=subprocess.DEVNULL)
            found[name].append(json.loads(out.splitlines()[-1]))

    def rate(name: str, at: int, part: int) -> float:
        tokens = DECODED if part else CONTEXTS[at]
        return tokens / statistics.median(r["rounds"][at][part] for r in found[name])

    loads = [statistics.median(r["load"] for r in found[name]) for name in ("theirs", "ours")]
    print(f"Loading: genai {loads[0]:.1f} s, sampan {loads[1]:.1f} s.\n")
    print("| context | | genai tokens/s | sampan tokens/s | ratio |")
    print("|---|---|---|---|---|")
    for at, n in enumerate(CONTEXTS):
        for part, what in enumerate(("prefill", "decode")):
            peer, mine = rate("theirs", at, part), rate("ours", at, part)
            print(f"| {n} | {what} | {peer:.1f} | {mine:.1f} | **{mine / peer:.2f}** |")


def timed(run: Callable[[list[int]], tuple[float, float]]) -> list[tuple[float, float]]:
    """Median seconds of prefill and decode for each context, after a run that does not count."""
    ids = [int(i) for i in np.random.default_rng(0).integers(1000, 50_000, max(CONTEXTS))]
    found = []
    for n in CONTEXTS:
        runs = [run(ids[:n]) for _ in range(4)][1:]
        found.append((statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)))
    return found


def ours(options: argparse.Namespace) -> None:
    """Our runtime."""
    start = time.perf_counter()
    from sampan import runtime

    session = runtime.open(options.folder, runtime.EngineOptions(context=1024, threads=os.cpu_count()))
    engine, load = session._engine, time.perf_counter() - start

    def run(prompt: list[int]) -> tuple[float, float]:
        engine.keep(0)
        start = time.perf_counter()
        token = int(np.argmax(engine.evaluate(prompt, 1)[0]))
        middle = time.perf_counter()
        for _ in range(DECODED):
            token = int(np.argmax(engine.evaluate([token], 1)[0]))
        return middle - start, time.perf_counter() - middle

    print(json.dumps({"load": load, "rounds": timed(run)}))


def theirs(options: argparse.Namespace) -> None:
    """onnxruntime-genai."""
    start = time.perf_counter()
    import onnxruntime_genai as genai

    config = genai.Config(str(options.folder))  # by itself it took one of two cores
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": os.cpu_count()}}}}))
    model = genai.Model(config)
    genai.Tokenizer(model)
    load = time.perf_counter() - start

    def run(prompt: list[int]) -> tuple[float, float]:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=1024, min_length=1024, do_sample=False)
        generator = genai.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(DECODED):
            generator.generate_next_token()
        return middle - start, time.perf_counter() - middle

    print(json.dumps({"load": load, "rounds": timed(run)}))


def drift(options: argparse.Namespace) -> None:
    """Mean KLD, top-1 and bytes of folders; the reference is made once in the cache."""
    from contextlib import nullcontext

    from tokenizers import Tokenizer

    from sampan.validate.drift import Side
    from sampan.validate.drift import measure as drift_of
    from sampan.validate.metrics._scores import Scores
    from sampan.validate.reference import find_reference
    from sampan.validate.summary import compare as paired
    from sampan.validate.windows import DOMAINS, built_in, cut

    reference = find_reference(str(options.checkpoint), None, 4 * 10**9, lambda *_: nullcontext(lambda n: None))
    reader = Tokenizer.from_file(str(options.checkpoint / "tokenizer.json"))
    domains = [cut(d, reader.encode(built_in(f"{d}.txt")).ids, options.windows) for d in DOMAINS if d != "chat"]
    print("| folder | level | bytes | KLD | " + " | ".join(d.name for d in domains) + " | top-1 |")
    print("|---" * (5 + len(domains)) + "|", flush=True)
    known: list[dict[str, Scores]] = []
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        for n, folder in enumerate(options.folders):
            place = folder if options.level is None else at_level(folder, Path(temporary) / str(n), options.level)
            side = Side("reference", reference.artifact).exact()
            scores = drift_of(side, Side("candidate", place), domains).scores
            known.append(scores)
            klds = [float(s.kld.mean()) for s in scores.values()]
            top1 = float(np.mean([s.same.mean() for s in scores.values()]))
            level = "4" if options.level is None else options.level
            cells = " | ".join(f"{k:.5f}" for k in klds)
            size = nbytes(folder)
            print(
                f"| {folder.name} | {level} | {size} | {np.mean(klds):.5f} | {cells} | {100 * top1:.1f} % |", flush=True
            )
    for n in range(0, len(known) - 1, 2):
        p, first, second = paired(known[n], known[n + 1]), *options.folders[n : n + 2]
        print(f"\nKLD of {first.name} / {second.name}: {p['ratio']:.4f} [{p['low']}, {p['high']}]", flush=True)


def at_level(folder: Path, out: Path, level: int) -> Path:
    """The same folder by links, its graph with another accuracy level in every product.

    At level 0 products of 8-bit weights become float32 products of the values that they stand for: ONNX Runtime
    has no fast kernel for those.
    """
    import onnx

    from sampan.onnx import read_graph

    out.mkdir()
    for file in folder.iterdir():
        os.link(file, out / file.name) if file.name == "model.onnx.data" else shutil.copy(file, out)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    stored = read_graph(folder).arrays
    casts = [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in stored]
    stored |= {n.output[0]: stored[n.input[0]] for n in casts}  # float16 scales

    def read(name: str) -> Any:
        a = stored[name]
        dtype = {"uint8": "u1", "float16": "<f2", "float": "<f4"}[a.dtype]
        return np.fromfile(a.path, dtype, math.prod(a.shape), offset=a.offset).reshape(a.shape)

    nodes = []
    with (out / "level0.data").open("wb") as data:
        for node in model.graph.node:
            options = {a.name: a for a in node.attribute}
            if "accuracy_level" in options:
                options["accuracy_level"].i = level
            if level or node.op_type != "MatMulNBits" or options["bits"].i == 4:
                nodes.append(node)
                continue
            a, b, scales, zero, _, bias, *_ = [*node.input, "", "", ""]
            codes, rows = read(b).astype(np.float32), options["N"].i
            codes -= read(zero).reshape(*codes.shape[:2], 1) if zero else np.float32(128)
            codes *= read(scales).astype(np.float32).reshape(*codes.shape[:2], 1)
            weight = codes.reshape(rows, -1).T
            new = onnx.TensorProto(name=f"{node.output[0]}/weight", data_type=1, dims=weight.shape, data_location=1)
            for key, value in (("location", "level0.data"), ("offset", data.tell()), ("length", weight.nbytes)):
                new.external_data.add(key=key, value=str(value))
            data.write(np.ascontiguousarray(weight).tobytes())
            model.graph.initializer.append(new)
            product = f"{node.output[0]}/product" if bias else node.output[0]
            nodes.append(onnx.helper.make_node("MatMul", [a, new.name], [product]))
            if bias:
                nodes.append(onnx.helper.make_node("Add", [product, bias], [node.output[0]]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (out / "model.onnx").write_bytes(model.SerializeToString())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder with room for the outputs (default: a temporary one)")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("export")
    one.add_argument("checkpoint", type=Path)
    one.add_argument("--schemes", default="int4,int8")
    one.add_argument("--runs", type=int, default=3)
    one.set_defaults(run=export)
    two = commands.add_parser("speed")
    two.add_argument("ours", type=Path)
    two.add_argument("theirs", type=Path)
    two.add_argument("--runs", type=int, default=3)
    two.set_defaults(run=speed)
    three = commands.add_parser("drift")
    three.add_argument("checkpoint", type=Path)
    three.add_argument("folders", type=Path, nargs="+")
    three.add_argument("--windows", type=int, default=2)
    three.add_argument("--level", type=int, choices=(0, 4))
    three.set_defaults(run=drift)
    for part in (ours, theirs):
        p = commands.add_parser(part.__name__)
        p.add_argument("folder", type=Path)
        p.set_defaults(run=part)
    four = commands.add_parser("random")
    four.add_argument("like", type=Path)
    four.add_argument("out", type=Path)
    four.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    four.set_defaults(run=random_weights)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
