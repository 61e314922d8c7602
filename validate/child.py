"""Work that runs engines, in a process of its own: an engine that aborts takes only this process with it.

The task comes as one JSON object on standard input, answers go as JSON lines to standard output: scores and
ids, never logits.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError
from sampan.runtime import EngineOptions, Session, open

from .metrics._scores import score

Say = Callable[[dict[str, Any]], None]


class Model(Protocol):
    """What is compared: a Session, or transformers."""

    @property
    def vocab(self) -> int: ...

    def logit_slices(self, tokens: Sequence[int], *, first: int = 0) -> Iterator[NDArray[np.float32]]: ...

    def take_experts(self) -> dict[int, NDArray[np.int32]]: ...

    def close(self) -> None: ...


def _open(side: dict[str, Any], context: int, experts: bool, say: Say) -> Model:
    say({"stage": f"opening {side['path']}", "of": side["role"]})
    if side["engine"] == "torch":
        from .torch_reference import TorchModel

        return TorchModel(Path(side["path"]), side["threads"])
    options = EngineOptions(
        context=context,
        threads=side["threads"],
        kv=side["kv"],
        flash_attention=side["flash_attention"],
        record_experts=experts,
    )
    if side["coarse"]:
        from .edges import open_coarse  # it loads the onnx package

        return open_coarse(Path(side["path"]), options, side["coarse"])
    return open(side["path"], options, target=side["target"])


def score_windows(task: dict[str, Any], say: Say) -> None:
    """Both models over every window: one message of columns for each window, in order."""
    context = max(len(w) for d in task["domains"] for w in d["windows"])
    reference = _open(task["reference"], context, task["experts"], say)
    candidate = _open(task["candidate"], context, task["experts"], say)
    if reference.vocab != candidate.vocab:
        raise InputError(
            f"{task['candidate']['path']}: expected a vocabulary of {reference.vocab}, as the reference has, "
            f"found {candidate.vocab}"
        )
    say({"stage": "scoring", "of": "candidate"})
    forward = 0.0
    for domain in task["domains"]:
        for tokens in domain["windows"]:
            columns, spent = _score_window(reference, candidate, tokens, domain["scored"])
            forward += spent
            message = {"scores": columns.T.tolist(), "domain": domain["name"], "forward_seconds": forward}
            if task["experts"] and (other := _other_experts(reference, candidate, domain["scored"])):
                message["experts"] = other
            say(message)


def _score_window(
    reference: Model, candidate: Model, tokens: list[int], scored: int
) -> tuple[NDArray[np.float64], float]:
    """Columns [scored, 4] and the seconds that the models' own forward passes took."""
    first = len(tokens) - 1 - scored
    following = np.array(tokens[first + 1 :])
    inputs = tokens[:-1]
    parts, at, spent = [], 0, 0.0
    left = right = np.empty((0, reference.vocab), np.float32)
    a, b = reference.logit_slices(inputs, first=first), candidate.logit_slices(inputs, first=first)
    while at < scored:
        start = time.perf_counter()
        left, right = left if len(left) else next(a), right if len(right) else next(b)
        spent += time.perf_counter() - start
        both = min(len(left), len(right))  # each cuts its positions in its own way
        parts.append(score(left[:both], right[:both], following[at : at + both]))
        left, right, at = left[both:], right[both:], at + both
    return np.concatenate(parts), spent


def _other_experts(reference: Model, candidate: Model, scored: int) -> list[float]:
    """Share of the scored positions with another choice of experts in any layer, and of (position, layer) pairs.

    Empty where one of them does not tell.
    """
    a, b = reference.take_experts(), candidate.take_experts()
    if not a or a.keys() != b.keys() or any(a[i].shape[1] != b[i].shape[1] for i in a):
        return []
    differs = np.array([(a[i][-scored:] != b[i][-scored:]).any(axis=1) for i in sorted(a)])
    return [float(differs.any(axis=0).mean()), float(differs.mean())]


def tokenize(task: dict[str, Any], say: Say) -> None:
    """Ids of texts by an artifact's own engine: `texts` is a list of [text, special, around]. Then the texts and ids of
    conversations (see chat.items), or why one is refused.
    """
    say({"stage": f"opening {task['path']}", "of": "candidate"})
    with open(task["path"], EngineOptions(vocabulary_only=True)) as session:
        say({"ids": [session.tokenize(t, special=special, around=around) for t, special, around in task["texts"]]})
        if items := task.get("items"):
            say({"conversations": [_converse(session, item) for item in items]})


def _converse(session: Session, item: dict[str, Any]) -> dict[str, Any]:
    try:
        text = session.render_chat(**item)
    except InputError as e:
        return {"refused": str(e)}
    return {"text": text, "ids": session.tokenize(text, around=False)}


TASKS = {"score": score_windows, "tokenize": tokenize}


def main() -> None:
    """Read a task, do it. Whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = json.load(sys.stdin)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        TASKS[task["task"]](task, say)
        say({"done": True})
    except InputError as e:
        say({"refused": str(e)})
