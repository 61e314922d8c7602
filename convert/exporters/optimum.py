"""Optimum (optimum-onnx) in an environment of its own: it traces a checkpoint into a float32 graph.

Its pins exclude current transformers, so nothing of it is ever imported here. Its results are not trusted: it ends
with exit code 0 on wrong graphs, and its transformers misreads the configs of transformers 5. So the config is
rewritten for it, and every graph is compared with a current transformers that reads the checkpoint's own config.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampan.checkpoint import INDEX, Checkpoint
from sampan.child import run_other
from sampan.errors import InputError, brief, wrong

from ..config import Config
from ._check import check

# Installed one after the other; torch first, where an index may offer a CPU build under this exact version
PACKAGES = (("torch==2.13.0",), ("optimum-onnx==0.1.0", "onnx>=1.19,<2", "onnxruntime>=1.32,<2"))
REFERENCE = "transformers>=5.20,<6"  # in a folder of its own: Optimum needs one before 4.58
PINS = " ".join([p for group in PACKAGES for p in group] + [REFERENCE])
MARKS = ("pins", "pyvenv.cfg")  # what an environment that we made holds
INSIDE = Path(__file__).with_name("_optimum_inside.py")
TOKENS = 40  # of a check


@dataclass(frozen=True, slots=True)
class Exported:
    """An accepted graph. `context`: positions that it was checked for; `record`: for the manifest."""

    graph: Path
    context: int
    record: dict[str, Any]


def environment() -> Path:
    """Where the exporter's environment lies: `sampan/exporter` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "sampan" / "exporter"


def find(folder: Path) -> Path:
    """`folder`, if it holds the environment that this version makes."""
    pins = folder / "pins"
    found = pins.read_text() if pins.is_file() else None
    if found != PINS:
        raise wrong(
            folder, "the exporter's environment", "none" if found is None else f"one with {brief(found)}",
            "--make-exporter makes it with pip: torch, optimum-onnx and transformers, about 2 GB",
        )  # fmt: skip
    return folder


def make(folder: Path) -> Path:
    """Make the environment with venv and pip, unless it stands; what pip prints goes to stderr."""
    try:
        return find(folder)
    except InputError:
        folder.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(folder) and not all((folder / name).is_file() for name in MARKS):
        raise InputError(
            f"{folder}: --make-exporter would put its environment there, and finds a folder that it did not make: "
            "move that away, or set XDG_CACHE_HOME"
        )
    part = Path(tempfile.mkdtemp(prefix="exporter.", dir=folder.parent))
    try:
        _call(sys.executable, "venv", str(part / "new"))
        python = str(part / "new" / "bin" / "python")
        pip = ["pip", "--disable-pip-version-check", "install", "--quiet"]
        for group in PACKAGES:
            _call(python, *pip, *group)
        # the resolver would complain that this folder does not suit Optimum, which never sees it
        _call(python, *pip, "--ignore-installed", "--target", str(part / "new" / "reference"), REFERENCE)
        (part / "new" / "pins").write_text(PINS)
        if folder.exists():
            folder.rename(part / "old")
        (part / "new").rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _call(python: str, *module: str) -> None:
    if code := run_other(python, "-m", *module).returncode:
        raise InputError(f"--make-exporter: `-m {' '.join(module[:3])} …` failed with exit code {code}")


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
        "exporter": PINS,
        "reference": f"transformers {answer['transformers']}",
        "largest_error": error,
        "largest_allowed": bound,
    }
    return Exported(work / "graph" / "model.onnx", context, record)


class _Run:
    """Runs `_optimum_inside.py` in the environment, offline and without a token."""

    def __init__(self, place: Path, work: Path, where: str) -> None:
        self._python, self._work, self._where = place / "bin" / "python", work, where

    def __call__(self, command: str, **arguments: object) -> dict[str, Any]:
        job, result = (self._work / f"{command}.{n}.json" for n in ("job", "result"))
        job.write_text(json.dumps({"command": command, "result": result, **arguments}, default=str))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self._work / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = run_other(str(self._python), str(INSIDE), str(job), environment=kept | offline, capture=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            said = brief(lines[-1], 300) if lines else f"exit code {done.returncode}"
            raise InputError(f"--exporter optimum: its {command} of this checkpoint failed: {said}")
        answer: dict[str, Any] = json.loads(result.read_text())
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
