"""Optimum (optimum-onnx) in an environment of its own: it traces a checkpoint into a float32 graph.

Its pins exclude current transformers, so nothing of it is ever imported here. Its results are not trusted: it ends
with exit code 0 on wrong graphs, and its transformers misreads the configs of transformers 5. So the config is
rewritten for it, and every graph is compared with a current transformers that reads the checkpoint's own config.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampan.checkpoint import INDEX, Checkpoint
from sampan.errors import brief, wrong

from ..config import Config
from ..environments import Environment, Step, ask
from ._check import check

ENVIRONMENT = Environment(
    name="exporter",
    what="the exporter's environment",
    flag="--make-exporter",
    brings="torch, optimum-onnx and transformers, about 2 GB",
    steps=(  # torch first, where an index may offer a CPU build under this exact version
        Step(("torch==2.13.0",)),
        Step(("optimum-onnx==0.1.0", "onnx>=1.19,<2", "onnxruntime>=1.32,<2")),
        Step(("transformers>=5.20,<6",), aside="reference"),  # Optimum needs one before 4.58
    ),
)
INSIDE = Path(__file__).with_name("_optimum_inside.py")
TOKENS = 40  # of a check


@dataclass(frozen=True, slots=True)
class Exported:
    """An accepted graph. `context`: positions that it was checked for; `record`: for the manifest."""

    graph: Path
    context: int
    record: dict[str, Any]


def export(checkpoint: Checkpoint, place: Path, work: Path, context: int | None) -> Exported:
    """Trace `checkpoint` into `work` with the environment at `place`, and compare its logits with transformers'.

    Raises InputError for what Optimum does not know and for a graph that computes something else.
    """
    config, where = checkpoint.config, str(checkpoint.folder / "config.json")
    Config(config, where).is_default("quantization_config")
    vocab = Config(config, where).natural("vocab_size")
    context = positions(config, where, context)
    run = _Run(place, work, where)
    run("export", source=_linked(checkpoint, old_style(config, where), work / "old"), out=work / "graph")
    tokens = np.random.default_rng(1).integers(0, vocab, min(TOKENS, context)).tolist()
    starts = [context - len(tokens)] if context > len(tokens) else []
    answer = run(
        "reference", source=_linked(checkpoint, config, work / "new"), out=work / "reference.npy", tokens=tokens,
        starts=starts, packages=place / "reference",
    )  # fmt: skip
    error, bound = check(work / "graph" / "model.onnx", tokens, starts, np.load(work / "reference.npy"))
    record = {
        "exporter": ENVIRONMENT.pins,
        "reference": f"transformers {answer['transformers']}",
        "largest_error": error,
        "largest_allowed": bound,
    }
    return Exported(work / "graph" / "model.onnx", context, record)


class _Run:
    """Runs `_optimum_inside.py` in the environment, offline and without a token."""

    def __init__(self, place: Path, work: Path, where: str) -> None:
        self._place, self._work, self._where = place, work, where

    def __call__(self, command: str, **arguments: object) -> dict[str, Any]:
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self._work / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        what = f"--exporter optimum: its {command} of this checkpoint"
        answer = ask(self._place, INSIDE, self._work, command, what, offline, **arguments)
        if "refused" in answer:
            key, expected, found = answer["refused"]
            raise wrong(f"{self._where}: {key}", expected, brief(found))
        return answer


def _linked(checkpoint: Checkpoint, config: Mapping[str, Any], folder: Path) -> Path:
    """A folder with that config and links to the weights: no pickle and no code of the checkpoint is in reach."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "auto_map"}))
    for shard in checkpoint.shards:
        assert shard.path is not None  # noqa: S101 - only a plan is made without files
        (folder / shard.name).symlink_to(shard.path.resolve())
    if (checkpoint.folder / INDEX).exists():
        shutil.copy(checkpoint.folder / INDEX, folder)
    return folder


def old_style(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config as transformers 4 reads it: `rope_parameters` and `dtype` of transformers 5 under their old keys."""
    old = dict(config)
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = Config(config, where).section("rope_parameters")
    old.pop("rope_parameters", None)
    values = dict(rope.values)
    if any(isinstance(v, dict) for v in values.values()):
        raise wrong(rope.where, "one rope for all layers", f"one for each of {brief(', '.join(values))}")
    for key in ("rope_theta", "partial_rotary_factor"):
        value = values.pop(key, None)
        if value is None:
            continue
        if old.get(key, value) != value:
            raise wrong(f"{where}: {key}", f"{value} as in rope_parameters", brief(old[key]))
        old[key] = value
    if values.get("rope_type", "default") != "default":
        old["rope_scaling"] = values
    return old


def positions(config: Mapping[str, Any], where: str, asked: int | None) -> int:
    """Positions that a graph is offered for: no more than the check can speak for.

    Within a window every token sees all others, and within the original context dynamic ropes do not change.
    """
    read = Config(config, where)
    most = read.natural("max_position_embeddings", "n_positions", "max_sequence_length", default=2048)
    if read.flag("use_sliding_window", True):
        for key in ("sliding_window", "attention_chunk_size"):
            most = min(most, read.natural(key, default=most))
    rope = read.section("rope_parameters" if config.get("rope_parameters") else "rope_scaling")
    if rope.get("rope_type", "type") in ("dynamic", "longrope", "su"):
        original = rope if rope.get("original_max_position_embeddings") is not None else read
        most = min(most, original.natural("original_max_position_embeddings", default=most))
    if asked is not None and asked > most:
        raise wrong("--context", f"at most {most}, beyond which the graph cannot be checked", asked)
    return asked or most
