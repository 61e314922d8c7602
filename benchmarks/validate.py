#!/usr/bin/env python3
"""What scoring costs beside the forward passes it needs, and the drift table of a model's schemes.

    python benchmarks/validate.py cost REFERENCE.gguf CANDIDATE.gguf [--windows 4] [--runs 3]
    python benchmarks/validate.py table CHECKPOINT CANDIDATE …
    python benchmarks/validate.py hidden REFERENCE.gguf [--windows 4]

`cost` times, in alternating runs, our scoring loop and two bare llama.cpp loops (`llama_decode`, then a copy of
the logits) that return the logits of the same positions of the same windows; models loaded, both with float32
KV cache and without flash attention. Peak memory is VmHWM of each process, mapped weights included: llama.cpp holds
some types twice, mapped and repacked for its kernels.
`table` runs `sampan validate` on every candidate. `hidden` asks what a cache of the reference's final hidden states
would save: its forward passes against the product of stored states with the head. All print Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCORED, SIZE = 128, 256
KEPT: list[Any] = []  # callbacks that C code holds


def peak() -> int:
    """VmHWM of this process in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def ours(paths: list[str], windows: list[list[int]]) -> dict[str, float]:
    """Our loop, from the first score to the last; the models are loaded by then."""
    from sampan.validate.child import score_windows

    side = {"engine": "engine", "kv": "f32", "flash_attention": False, "threads": None}
    task: dict[str, Any] = {
        "reference": side | {"role": "reference", "path": paths[0]},
        "candidate": side | {"role": "candidate", "path": paths[1]},
        "domains": [{"name": "text", "windows": windows, "scored": SCORED}],
        "experts": False,
    }
    times: list[float] = []

    def say(message: dict[str, Any]) -> None:
        if message.get("stage") == "scoring" or "scores" in message:
            times.append(time.perf_counter())

    score_windows(task, say)
    return {"seconds": times[-1] - times[0], "peak": peak()}


def load(path: str, embeddings: bool = False) -> tuple[Any, Any]:
    """A plain llama.cpp context, and its model."""
    from llama_cpp import llama_cpp as lib

    from sampan.runtime.engines.llama import amx

    quiet = lib.llama_log_callback(lambda *_: None)
    KEPT.append(quiet)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    of_model = lib.llama_model_default_params()
    of_model.use_extra_bufts = not amx(lib)
    model = lib.llama_model_load_from_file(path.encode(), of_model)
    p = lib.llama_context_default_params()
    p.n_ctx = p.n_batch = p.n_ubatch = SIZE
    p.n_threads = p.n_threads_batch = len(os.sched_getaffinity(0))
    p.type_k = p.type_v = p.flash_attn_type = 0
    p.embeddings = embeddings
    p.pooling_type = 0  # one a token
    return lib.llama_init_from_model(model, p), model


def decode(context: Any, batch: Any, window: list[int]) -> None:
    """Evaluate a window; outputs of its last positions."""
    from llama_cpp import llama_cpp as lib

    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    batch.n_tokens = len(window) - 1
    for i, token in enumerate(window[:-1]):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
        batch.logits[i] = i >= len(window) - 1 - SCORED
    assert lib.llama_decode(context, batch) == 0


def outputs(pointer: Any, width: int, rows: int = SCORED) -> NDArray[np.float32]:
    """A copy of what a decode left in its last positions: [SCORED, width] of [rows, width]."""
    return np.ctypeslib.as_array(pointer, shape=(rows * width,)).reshape(rows, width)[-SCORED:].copy()


def bare(paths: list[str], windows: list[list[int]]) -> dict[str, float]:
    """Each model in a plain loop of one `llama_decode` a window."""
    from llama_cpp import llama_cpp as lib

    loaded = [load(path) for path in paths]
    sized = [(c, lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(m))) for c, m in loaded]
    batch = lib.llama_batch_init(SIZE, 0, 1)
    start = time.perf_counter()
    for window in windows:
        for context, vocab in sized:
            decode(context, batch, window)
            outputs(lib.llama_get_logits(context), vocab)
    return {"seconds": time.perf_counter() - start, "peak": peak()}


def windows_of(path: str, count: int) -> list[list[int]]:
    from sampan.runtime import EngineOptions, open
    from sampan.validate.windows import built_in

    with open(path, EngineOptions(vocabulary_only=True)) as session:
        ids = session.tokenize(built_in("en.txt"))
    return [ids[i * SCORED : i * SCORED + SIZE] for i in range(count)]


def hidden(arguments: argparse.Namespace) -> None:
    """Forward passes with logits, against stored final hidden states times the float32 head."""
    import gguf
    from llama_cpp import llama_cpp as lib

    tensors = {t.name: t for t in gguf.GGUFReader(arguments.reference).tensors}
    head = np.asarray(tensors.get("output.weight", tensors["token_embd.weight"]).data)
    windows = windows_of(arguments.reference, arguments.windows)
    (plain, _), (states, _) = load(arguments.reference), load(arguments.reference, embeddings=True)
    batch = lib.llama_batch_init(SIZE, 0, 1)
    forward = product = largest = 0.0
    for window in windows:
        start = time.perf_counter()
        decode(plain, batch, window)
        wanted = outputs(lib.llama_get_logits(plain), len(head))
        forward += time.perf_counter() - start
        decode(states, batch, window)
        # every position has a state, whether asked for or not
        stored = outputs(lib.llama_get_embeddings(states), head.shape[1], len(window) - 1)
        start = time.perf_counter()
        logits = stored @ head.T
        product += time.perf_counter() - start
        largest = max(largest, float(np.abs(logits - wanted).max()))
    print("| | |\n|---|---|")
    print(f"| reference's forward passes | {forward:.2f} s |")
    print(f"| stored states × head | {product:.2f} s |")
    print(f"| largest difference of a logit | {largest:.1e} |")
    print(f"| cache of a position | {4 * head.shape[1]} bytes |")


def cost(arguments: argparse.Namespace) -> None:
    paths = [arguments.reference, arguments.candidate]
    windows = windows_of(paths[0], arguments.windows)
    results: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for _ in range(arguments.runs):
        for name, found in results.items():
            task = json.dumps([name, paths, windows])
            out = subprocess.run([sys.executable, __file__, "part"], input=task, capture_output=True, text=True)
            found.append(json.loads(out.stdout))
    seconds = {name: statistics.median(r["seconds"] for r in found) for name, found in results.items()}
    peaks = {name: max(r["peak"] for r in found) / 1e6 for name, found in results.items()}
    print("| | |\n|---|---|")
    print(f"| scored positions | {SCORED * arguments.windows} |")
    print(f"| our loop | {seconds['ours']:.2f} s |")
    print(f"| two bare forward passes | {seconds['bare']:.2f} s |")
    print(f"| ratio | {seconds['ours'] / seconds['bare']:.3f} |")
    print(f"| peak memory of our loop | {peaks['ours']:.0f} MB |")
    print(f"| of the bare loops, both models loaded | {peaks['bare']:.0f} MB |")


def table(arguments: argparse.Namespace) -> None:
    print("| candidate | bytes | bits/weight | KLD (95 % interval) | zh | en | code | chat | top-1 | PPL ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for candidate in arguments.candidates:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "report.json"
            command = "from sampan.cli import main; main()"
            run = [sys.executable, "-c", command, "validate", arguments.checkpoint, candidate, "--json", str(out)]
            subprocess.run([*run, *arguments.options], check=False, stdout=sys.stderr)
            c = json.loads(out.read_text())["candidates"][0]
        drift = c["drift"]["total"]
        mean = drift["mean"]
        kld = mean["kld"]
        cells = [Path(candidate).stem, c["bytes"], f"{c['bits_per_weight']:.2f}"]
        cells.append(
            f"{kld['value']:.5f} ({kld['low']:.5f} – {kld['high']:.5f})" if kld["low"] else f"{kld['value']:.5f}"
        )
        cells += [f"{drift[d]['kld']['value']:.5f}" for d in ("zh", "en", "code", "chat")]
        cells += [f"{100 * mean['top1']['value']:.1f} %", f"{mean['ppl_ratio']['value']:.4f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    if sys.argv[1:] == ["part"]:
        name, paths, windows = json.load(sys.stdin)
        print(json.dumps({"ours": ours, "bare": bare}[name](paths, windows)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    c = commands.add_parser("cost")
    c.add_argument("reference")
    c.add_argument("candidate")
    c.add_argument("--windows", type=int, default=4)
    c.add_argument("--runs", type=int, default=3)
    c.set_defaults(run=cost)
    h = commands.add_parser("hidden")
    h.add_argument("reference")
    h.add_argument("--windows", type=int, default=4)
    h.set_defaults(run=hidden)
    t = commands.add_parser("table")
    t.add_argument("checkpoint")
    t.add_argument("candidates", nargs="+")
    t.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    t.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
