#!/usr/bin/env python3
"""The time to the first token of `sampan run`.

    python benchmarks/start.py MODEL… [--turns 9]

From the start of a process to the first bytes of an answer of `sampan run MODEL`, a GGUF file or an ONNX folder, as a
ratio to the engine alone, in processes that take turns: llama-cpp-python's own chat, and for ONNX a script with
onnxruntime, tokenizers and jinja2. Medians of the ratios of neighbours and of the seconds, by the clock, and those of
processor time up to there, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

from sampan.table import table

QUESTION = "What is the capital of Peru?"
BARE_GGUF = """
import os, sys
from llama_cpp import Llama
path, question, context = sys.argv[1:]
model = Llama(path, n_ctx=int(context), n_threads=os.cpu_count(), verbose=False)
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
    parser.add_argument("models", nargs="+")
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    start(arguments.models, arguments.turns)


if __name__ == "__main__":
    main()
