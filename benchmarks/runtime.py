#!/usr/bin/env python3
"""What the runtime adds to an engine's own work: the time to choose a token, and to come to the first one.

    python benchmarks/runtime.py sampling
    python benchmarks/runtime.py start MODEL…

`start`: from the start of a process to the first bytes of an answer of `sampan run MODEL`, a GGUF file or an ONNX
folder, as a ratio to the engine alone, in processes that take turns: llama-cpp-python's own chat, and for ONNX a script
with onnxruntime, tokenizers and jinja2. Medians of the ratios of neighbours and of the seconds, by the clock, and those
of processor time up to there, which other work on the machine changes less.

`sampling`: medians over the steps of one answer at the vocabularies of Qwen3 and Kimi K2, after a prompt of 4,000
tokens; seconds of the thread that computes, so that other work on the machine counts little. "peaked" logits have a few
likely words as those of a model; "flat" ones are noise, of which the nucleus takes a third of all words.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from numpy.typing import NDArray

from sampan.runtime import Sampling
from sampan.runtime.sampling import Sampler, log_probabilities
from sampan.table import table

WORDS = (151_936, 163_840)
STEPS = 200
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
                sampler = Sampler(s, range(4000), words, 0)
                lines.append([words, kind, name, *timed(lambda row, s=sampler: s.choose(row), logits)])
        lines.append([words, "", "log probabilities", *timed(log_probabilities, logits)])
    print(table(lines, right="ade"))


def timed(work: Callable[[NDArray[np.float32]], object], logits: list[NDArray[np.float32]]) -> list[str]:
    seconds = []
    for step in range(STEPS):
        row = logits[step % len(logits)]
        began = time.thread_time()
        work(row)
        seconds.append(time.thread_time() - began)
    return [f"{1e3 * median(seconds):.2f}", f"{1e3 * quantiles(seconds, n=20)[-1]:.2f}"]


QUESTION = "What is the capital of Peru?"
BARE_GGUF = """
import sys
from llama_cpp import Llama
path, question, context = sys.argv[1:]
model = Llama(path, n_ctx=int(context), verbose=False)
messages = [{"role": "user", "content": question}]
for part in model.create_chat_completion(messages, max_tokens=2, temperature=0, stream=True):
    print(part["choices"][0]["delta"].get("content", ""), end="", flush=True)
"""
BARE_ONNX = """
import json, os, sys
import jinja2, numpy as np, onnxruntime as ort, tokenizers
folder, question, context = sys.argv[1:]
read = lambda name: json.load(open(f"{folder}/{name}"))
words = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
session = ort.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
file = f"{folder}/chat_template.jinja"
template = open(file).read() if os.path.exists(file) else read("tokenizer_config.json")["chat_template"]
messages = [{"role": "user", "content": question}]
text = jinja2.Environment().from_string(template).render(messages=messages, add_generation_prompt=True)
ids = np.array([words.encode(text).ids])
decoder = read("genai_config.json")["model"]["decoder"]
empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
past = {i.name: empty for i in session.get_inputs() if i.name.startswith("past")}
feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
print(words.decode([int(session.run(["logits"], feed)[0][0, -1].argmax())]), flush=True)
"""
OURS = "from sampan.cli import main; main()"


def start(models: list[str], turns: int) -> None:
    lines: list[list[object]] = [["model", "", "sampan s", "bare s", "ratio", "quartiles"]]
    for model in models:
        from sampan.runtime import open

        with open(model) as session:
            context = str(session.context)
        bare = BARE_ONNX if Path(model).is_dir() else BARE_GGUF
        ours = [OURS, "run", model, QUESTION, "--temperature", "0", "--max-tokens", "2"]
        runs = [(first_bytes(ours), first_bytes([bare, model, QUESTION, context])) for _ in range(turns + 1)][1:]
        for n, what in enumerate(("clock", "processor")):
            times = [(a[n], b[n]) for a, b in runs]
            ratios = [a / b for a, b in times]
            low, _, high = quantiles(ratios, n=4)
            seconds = [f"{median(column):.2f}" for column in zip(*times, strict=True)]
            lines.append([Path(model).name, what, *seconds, f"{median(ratios):.2f}", f"{low:.2f} to {high:.2f}"])
    print(table(lines, right="cde"))


def first_bytes(code: list[str]) -> tuple[float, float]:
    """Seconds from the start of `python -c CODE …` until it writes: of the clock, and of processors, children's too."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", *code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1), "no answer"
        seconds, used = time.perf_counter() - began, processor(process.pid)
        process.stdout.read()
    return seconds, used


def processor(pid: int) -> float:
    """Seconds of processors that a process and its living children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(processor, map(int, children)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sampling", "start"])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    if arguments.what == "sampling":
        sampling()
    else:
        start(arguments.models, arguments.turns)


if __name__ == "__main__":
    main()
