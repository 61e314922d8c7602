"""Run reference and candidate side by side over the windows, and gather their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sampan.runtime.target import DEFAULT

from .isolated import messages
from .metrics._scores import Scores
from .windows import Domain

Progress = Callable[[int], None]
"""Called with the number of positions scored since the last call."""


@dataclass(frozen=True, slots=True)
class Side:
    """A model to run: an artifact for an engine, or a checkpoint folder for transformers ("torch").

    `coarse`: activations of a graph for an NPU that get 8 bits, on the processor.
    """

    role: Literal["reference", "candidate"]
    path: Path
    engine: Literal["engine", "torch"] = "engine"
    kv: str | None = None
    flash_attention: bool | None = None
    threads: int | None = None
    target: str = DEFAULT
    coarse: tuple[str, ...] = ()

    def exact(self) -> Side:
        """The same with what the engine computes most exactly: no flash attention, a float32 cache but for graphs."""
        graph = self.path.is_dir() or self.path.suffix == ".onnx"
        return replace(self, kv=None if graph else "f32", flash_attention=False)


@dataclass(frozen=True, slots=True)
class Drift:
    """Scores by domain, [chunks, positions], and the seconds of the models' own forward passes.

    `experts`, where recorded: share of positions with another choice of experts in any layer, and share of
    (position, layer) pairs.
    """

    scores: dict[str, Scores]
    forward_seconds: float
    experts: tuple[float, float] | None


def measure(
    reference: Side,
    candidate: Side,
    domains: Sequence[Domain],
    progress: Progress = lambda n: None,
    *,
    experts: bool = False,
) -> Drift:
    """Scores of every window; memory is two models and the logits of 128 positions of each.

    Raises InputError for a model that cannot be opened and EngineDiedError for one that kills its process.
    """
    task: dict[str, Any] = {
        "task": "score",
        "reference": _plain(reference),
        "candidate": _plain(candidate),
        "experts": experts and reference.engine == "engine",
        "domains": [{"name": d.name, "windows": d.windows, "scored": d.scored} for d in domains],
    }
    columns: dict[str, list[Any]] = {d.name: [] for d in domains}
    forward = 0.0
    choices: list[list[float]] = []
    for message in messages(task):
        if "scores" in message:
            columns[message["domain"]].append(message["scores"])
            forward = message["forward_seconds"]
            choices += [message["experts"]] if "experts" in message else []
            progress(len(message["scores"][0]))
    chunk = {d.name: d.chunk for d in domains}
    scores = {
        name: Scores(*(np.concatenate(c).reshape(-1, chunk[name]) for c in zip(*(map(_floats, rows)), strict=True)))
        for name, rows in columns.items()
    }
    anywhere, everywhere = np.mean(choices, axis=0) if choices else (0.0, 0.0)
    return Drift(scores, forward, (float(anywhere), float(everywhere)) if choices else None)


def _floats(rows: list[list[float]]) -> list[np.ndarray[Any, Any]]:
    return [np.array(row, np.float64) for row in rows]


def _plain(side: Side) -> dict[str, Any]:
    return asdict(side) | {"path": str(side.path)}
