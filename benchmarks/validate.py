#!/usr/bin/env python3
"""What scoring costs beside the forward passes it needs, and the drift table of a model's schemes.

    python benchmarks/validate.py cost REFERENCE.gguf CANDIDATE.gguf [--windows 4] [--runs 3]
    python benchmarks/validate.py table CHECKPOINT CANDIDATE.gguf …

`cost` times, in alternating runs, our scoring loop and two bare llama.cpp loops (`llama_decode`, then a copy of
the logits) that return the logits of the same positions of the same windows; models loaded, both with float32
KV cache and without flash attention. Peak memory is VmHWM of each process, mapped weights included: llama.cpp holds
some types twice, mapped and repacked for its kernels.
`table` runs `sampan validate` on every candidate. Both print Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCORED, SIZE = 128, 256


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


def bare(paths: list[str], windows: list[list[int]]) -> dict[str, float]:
    """Each model in a plain loop of one `llama_decode` a window."""
    import os

    import numpy as np
    from llama_cpp import llama_cpp as lib

    from sampan.runtime.engines.llama import amx

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    loaded = []
    of_model = lib.llama_model_default_params()
    of_model.use_extra_bufts = not amx(lib)
    for path in paths:
        model = lib.llama_model_load_from_file(path.encode(), of_model)
        p = lib.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = SIZE
        p.n_threads = p.n_threads_batch = len(os.sched_getaffinity(0))
        p.type_k = p.type_v = p.flash_attn_type = 0
        loaded.append((lib.llama_init_from_model(model, p), lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))))
    batch = lib.llama_batch_init(SIZE, 0, 1)
    start = time.perf_counter()
    for window in windows:
        for context, vocab in loaded:
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            batch.n_tokens = len(window) - 1
            for i, token in enumerate(window[:-1]):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
                batch.logits[i] = i >= len(window) - 1 - SCORED
            assert lib.llama_decode(context, batch) == 0
            logits = lib.llama_get_logits(context)
            np.ctypeslib.as_array(logits, shape=(SCORED * vocab,)).reshape(SCORED, vocab).copy()
    return {"seconds": time.perf_counter() - start, "peak": peak()}


def cost(arguments: argparse.Namespace) -> None:
    paths = [arguments.reference, arguments.candidate]
    from sampan.runtime import EngineOptions, open
    from sampan.validate.windows import built_in

    with open(paths[0], EngineOptions(vocabulary_only=True)) as session:
        ids = session.tokenize(built_in("en.txt"))
    windows = [ids[i * SCORED : i * SCORED + SIZE] for i in range(arguments.windows)]
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
    t = commands.add_parser("table")
    t.add_argument("checkpoint")
    t.add_argument("candidates", nargs="+")
    t.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    t.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
