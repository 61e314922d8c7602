#!/usr/bin/env python3
"""What the runtime adds to an engine's own work.

    python benchmarks/runtime.py sampling
    python benchmarks/runtime.py schema qwen.gguf kimi.gguf   # with the words of these artifacts; weights are not read
    python benchmarks/runtime.py speed MODEL [--llama-bench PROGRAM] [--runs 5] [--threads 2] [--depth 0]
    python benchmarks/runtime.py state qwen.gguf qwen-onnx    # a prefill, and its state saved and loaded

`speed` runs `sampan bench`, a plain loop over the engine and, where it is given, llama.cpp's llama-bench in turn, each
time in a new process: medians of tokens per second, and of their ratios with the least and the greatest. The plain loop
is over llama.cpp's C interface for a GGUF file, and over ONNX Runtime with the same graph for a folder: cache and
states are buffers bound to it, and logits of the last position only are asked for, as the graph is made for.

`sampling` and `schema` are the time to choose a token: medians over the steps of one answer at the vocabularies of
Qwen3 and Kimi K2, after a prompt of 4,000 tokens; seconds of the thread that computes, so that other work
on the machine counts little. "peaked" logits have a few likely words as those of a model; "flat" ones are noise,
of which the nucleus takes a third. "schema" walks through documents of a schema at temperature 1: the
ratio is to the same step without it.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan import runtime
from sampan.runtime import EngineOptions, Options, Sampling
from sampan.runtime.grammar import Constraint, Schema, Words, source
from sampan.runtime.sampling import Sampler, log_probabilities
from sampan.table import table

WORDS = (151_936, 163_840)
STEPS = 200
LONG = 1000  # tokens of a document
SETTINGS = {
    "greedy": Sampling(),
    "temperature": Sampling(1.0),
    "top-p 0.95": Sampling(0.7, top_p=0.95),
    "min-p 0.05": Sampling(1.0, min_p=0.05),
    "top-k 20, top-p 0.8": Sampling(0.7, top_k=20, top_p=0.8),
    "all penalties": Sampling(1.0, repetition_penalty=1.1, frequency_penalty=0.1, presence_penalty=0.1),
}


def rows(words: int, kind: str) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(words, np.float32) * 2 for _ in range(8)]
    for row in noise if kind == "peaked" else ():
        row[rng.integers(0, words, 40)] += rng.uniform(8, 16, 40).astype(np.float32)
    return noise


def sampling() -> None:
    lines: list[list[object]] = [["words", "logits", "setting", "median ms", "95 % ms"]]
    for words in WORDS:
        for kind in ("peaked", "flat"):
            logits = rows(words, kind)
            for name, s in SETTINGS.items():
                sampler = Sampler(s, range(4000), 0)
                lines.append([words, kind, name, *timed(lambda row, s=sampler: s.choose(row), logits)])
        lines.append([words, "", "log probabilities", *timed(log_probabilities, logits)])
    print(table(lines, right="ade"))


PERSON: Schema = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "mails", "note"], "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "note": {"type": "string"},
        "mails": {"type": "array", "items": {"type": "string", "format": "email"}, "maxItems": 4}},
}  # fmt: skip
SCHEMAS: dict[str, Schema] = {
    "a person": PERSON,
    "any object": {"type": "object"},
    "a list of 40 kinds": {"type": "array", "items": {"anyOf": [
        {"type": "object", "properties": {"kind": {"const": f"kind {i}"}, "value": {"type": "number"}},
         "required": ["kind", "value"], "additionalProperties": False} for i in range(40)]}},
}  # fmt: skip


class Walk:
    """A step of an answer that is held to a schema; a new document where one ends."""

    def __init__(self, sampler: Sampler, words: Words, text: str) -> None:
        self._sampler, self._words, self._text = sampler, words, text
        self._held = Constraint(words, text)

    def __call__(self, row: NDArray[np.float32]) -> None:
        token = self._sampler.choose(row, self._held.allowed())
        if token in self._words.ends:
            self._held = Constraint(self._words, self._text)
        else:
            self._held.take(token, self._words.texts[token])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def schema(paths: list[Path]) -> None:
    lines: list[list[object]] = [["words", "schema", "begin ms", "median ms", "95 % ms", "ratio"]]
    for path in paths:
        with runtime.open(path, EngineOptions(vocabulary_only=True)) as session:
            began = time.thread_time()
            words = Words(session._engine)
            lines.append([words.size, "its words, once", f"{1e3 * (time.thread_time() - began):.0f}", "", "", ""])
            logits = rows(words.size, "peaked")
            free = Sampler(Sampling(1.0), range(4000), 0)
            plain = timed(free.choose, logits)
            lines.append([words.size, "none", "", *plain, "1.00"])
            for name, wanted in SCHEMAS.items():
                text = source(wanted, None) or ""
                taken = [seconds(partial(Constraint, words, text, schema=wanted)) for _ in range(20)]
                found = timed(Walk(free, words, text), logits)
                ratio = float(found[0]) / float(plain[0])
                lines.append([words.size, name, f"{1e3 * median(taken):.1f}", *found, f"{ratio:.2f}"])
    print(table(lines, right="acdef"))


def state(paths: list[Path]) -> None:
    lines: list[list[object]] = [["artifact", "tokens", "prefill s", "save s", "MB", "load s", "ratio"]]
    print(table([*lines, *map(reopened, paths)], right="bcdefg"))


def reopened(path: Path) -> list[object]:
    """Seconds of the clock; the load reads from the page cache, and its first token is in it as in the prefill."""
    options, once = EngineOptions(context=LONG + 1), Options(1, Sampling())
    with runtime.open(path, options) as session, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state"
        tokens = np.random.default_rng(0).integers(0, session.vocab, LONG).tolist()
        prefill = seconds(lambda: session.stream(tokens, once).read())
        save = seconds(lambda: session.save(file))
        size = file.stat().st_size / 1e6
        with runtime.open(path, options) as other:
            load = seconds(lambda: (other.load(file), other.stream(tokens, once).read()))
    return [
        path.name,
        LONG,
        *(f"{s:.2f}" for s in (prefill, save)),
        f"{size:.0f}",
        f"{load:.2f}",
        round(prefill / load),
    ]


def timed(work: Callable[[NDArray[np.float32]], object], logits: list[NDArray[np.float32]]) -> list[str]:
    seconds = []
    for step in range(STEPS):
        row = logits[step % len(logits)]
        began = time.thread_time()
        work(row)
        seconds.append(time.thread_time() - began)
    return [f"{1e3 * median(seconds):.2f}", f"{1e3 * quantiles(seconds, n=20)[-1]:.2f}"]


def speed(options: argparse.Namespace) -> None:
    peers = {
        "sampan bench": ours,
        "plain loop": in_a_process,
        **({"llama-bench": theirs} if options.llama_bench else {}),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in peers}
    for run in range(options.runs):
        for name in sorted(peers, reverse=run % 2 == 1):
            found[name].append(peers[name](options))
    tests = [f"pp{options.prompt}", f"tg{options.decode}" + (f" @ d{options.depth}" if options.depth else "")]
    lines: list[list[object]] = [["test", *(n for n in peers), *(f"sampan / {n}" for n in list(peers)[1:])]]
    for at, test in enumerate(tests):
        values = {n: [r[at] for r in runs] for n, runs in found.items()}
        mine = values["sampan bench"]
        ratios = [[a / b for a, b in zip(mine, values[n], strict=True)] for n in list(peers)[1:]]
        shown = [f"{median(r):.3f} ({min(r):.3f} – {max(r):.3f})" for r in ratios]
        lines.append([test, *(f"{median(v):.1f}" for v in values.values()), *shown])
    print(table(lines, right="bcdef"))


def ours(options: argparse.Namespace) -> list[float]:
    words = ["--prompt", options.prompt, "--decode", options.decode, "--depth", options.depth]
    words += ["--threads", options.threads, "--repetitions", 1, "--json"]
    code = "from sampan.cli import main; main()"
    out = subprocess.check_output(
        [sys.executable, "-c", code, "bench", str(options.model), *map(str, words)], stderr=subprocess.DEVNULL
    )
    return [row["median"] for row in json.loads(out)["rows"][:2]]


def theirs(options: argparse.Namespace) -> list[float]:
    words = [
        "-p",
        options.prompt,
        "-n",
        options.decode,
        "-t",
        options.threads,
        "-d",
        options.depth,
        "-r",
        1,
        "-o",
        "csv",
    ]
    command = [str(options.llama_bench), "-m", str(options.model), *map(str, words)]
    out = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)
    return [float(row["avg_ts"]) for row in csv.DictReader(out.splitlines())]


def in_a_process(options: argparse.Namespace) -> list[float]:
    words = [options.model, options.prompt, options.decode, options.depth, options.threads]
    out = subprocess.check_output([sys.executable, __file__, "plain", *map(str, words)], stderr=subprocess.DEVNULL)
    rates: list[float] = json.loads(out.splitlines()[-1])
    return rates


def plain(options: argparse.Namespace) -> None:
    """An engine by its own interface and nothing of ours: one warm-up and one measurement of each."""
    begin, words, decode = (plain_onnx if options.model.is_dir() else plain_llama)(options)
    rng = np.random.default_rng(0)

    def evaluate(count: int, step: int) -> float:
        began = time.perf_counter()
        for at in range(0, count, step):
            decode([int(i) for i in rng.integers(0, words, min(step, count - at))])
        return count / (time.perf_counter() - began)

    rates = []
    for behind, count, step in ((0, options.prompt, 512), (options.depth, options.decode, 1)):
        for _ in range(2):
            begin()
            if behind:
                evaluate(behind, 512)
            rate = evaluate(count, step)
        rates.append(rate)
    print(json.dumps(rates))


Loop = tuple[Callable[[], None], int, Callable[[list[int]], None]]
"""What empties the cache, how many words there are, what evaluates tokens."""


def plain_llama(options: argparse.Namespace) -> Loop:
    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(options.model).encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = options.prompt + options.decode + options.depth, 512, 512
    params.n_threads = params.n_threads_batch = options.threads
    context = lib.llama_init_from_model(model, params)

    def begin() -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)

    def decode(ids: list[int]) -> None:
        tokens = (lib.llama_token * len(ids))(*ids)  # the batch only points to it
        assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))) == 0
        lib.llama_synchronize(context)

    return begin, lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)), decode


def plain_onnx(options: argparse.Namespace) -> Loop:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = ort.InferenceSession(options.model / "model.onnx", settings, providers=["CPUExecutionProvider"])
    longest = options.prompt + options.decode + options.depth
    buffers = {}
    for i in session.get_inputs():
        if i.name.startswith("past_"):
            shape = [1 if n == 0 else longest if type(d) is not int else d for n, d in enumerate(i.shape)]
            buffers[i.name] = np.zeros(shape, np.float32)
    states = {n: np.empty_like(a) for n, a in buffers.items() if not n.startswith("past_key_values")}
    words = {o.name: o.shape for o in session.get_outputs()}["logits"][-1]
    logits, mask, at = np.empty((1, 1, words), np.float32), np.ones((1, longest), np.int64), 0
    binding = session.io_binding()

    def begin() -> None:
        nonlocal at
        at = 0
        for name in states:
            buffers[name][:] = 0

    def bound(bind: Callable[..., None], name: str, a: NDArray[Any]) -> None:
        bind(name, "cpu", 0, a.dtype, a.shape, a.ctypes.data)

    def decode(ids: list[int]) -> None:
        nonlocal at
        at += len(ids)
        mask[:] = len(ids)  # above one: logits from that position on
        tokens, seen = np.array([ids], np.int64), np.ascontiguousarray(mask[:, :at])
        bound(binding.bind_input, "input_ids", tokens)
        bound(binding.bind_input, "attention_mask", seen)
        bound(binding.bind_output, "logits", logits)
        for name, buffer in buffers.items():
            present = name.replace("past_key_values", "present").replace("past_", "present_")
            bound(binding.bind_input, name, buffer)
            bound(binding.bind_output, present, states.get(name, buffer))
        session.run_with_iobinding(binding)
        for name in states:  # what came out goes in next
            buffers[name], states[name] = states[name], buffers[name]

    return begin, words, decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("sampling").set_defaults(run=lambda _: sampling())
    one = commands.add_parser("speed")
    one.add_argument("model", type=Path)
    one.add_argument("--llama-bench", type=Path)
    for name, value in (("runs", 5), ("threads", 2), ("prompt", 512), ("decode", 128), ("depth", 0)):
        one.add_argument(f"--{name}", type=int, default=value)
    one.set_defaults(run=speed)
    for name, run in (("schema", schema), ("state", state)):
        several = commands.add_parser(name)
        several.add_argument("artifacts", type=Path, nargs="+")
        several.set_defaults(run=lambda options, run=run: run(options.artifacts))
    two = commands.add_parser("plain")
    two.add_argument("model", type=Path)
    for name in ("prompt", "decode", "depth", "threads"):
        two.add_argument(name, type=int)
    two.set_defaults(run=plain)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
