#!/usr/bin/env python3
"""What the runtime adds to an engine's own work: the time to choose a token.

    python benchmarks/runtime.py sampling

Medians over the steps of one answer at the vocabularies of Qwen3 and Kimi K2, after a prompt of 4,000 tokens; seconds
of the thread that computes, so that other work on the machine counts little. "peaked" logits have a few likely words
as those of a model; "flat" ones are noise, of which the nucleus takes a third of all words.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sampling"])
    parser.parse_args()
    sampling()


if __name__ == "__main__":
    main()
