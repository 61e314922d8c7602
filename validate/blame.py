"""Where the drift comes from: put groups of tensors back to the reference's, one group at a time, and measure.

Groups are the kinds of tensors and the layers. Each of the two partitions the model, so the shares of each
would add up to one if drifts were additive; the sum that is found says how far to trust them. The weights of an ONNX
folder run dequantised, in a GGUF file: its graph has them in arrays that no reference has.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sampan.convert.architecture import EMBEDDING, HEAD

from .artifact import Artifact, Stored, compose, computed
from .drift import Side, measure
from .reference import Bars
from .windows import Domain

LAYER = re.compile(r"blk\.(\d+)\.(.*)")


def groups(names: Sequence[str], layer: re.Pattern[str] = LAYER) -> dict[str, dict[str, list[str]]]:
    """Partition ("kinds", "layers") → group → names; `layer` finds a layer and a kind in those that are of one."""
    kinds: dict[str, list[str]] = {}
    layers: dict[str, list[str]] = {}
    for name in names:
        match = layer.fullmatch(name)
        kinds.setdefault(match[2] if match else name, []).append(name)
        layers.setdefault(f"layer {match[1]}" if match else name, []).append(name)
    return {"kinds": kinds, "layers": layers}


def blame(
    exact: Artifact, candidate: Artifact, side: Side, domains: Sequence[Domain], threads: int | None, bars: Bars,
    exempt: Collection[str],
) -> dict[str, Any]:  # fmt: skip
    """Shares of the candidate's drift by kind and by layer, largest first, on some windows of every domain.

    Tensors of the `exempt` types are not looked at, nor those that the reference does not have: nothing runs them.
    """
    known = {*exact.tensors, HEAD}
    changed = [n for n, t in candidate.tensors.items() if t.type.name not in exempt and n in known]
    partitions = groups(changed)
    runs = sum(map(len, partitions.values())) + 1
    with (
        tempfile.TemporaryDirectory(dir=candidate.path.parent, prefix=".sampan-") as folder,
        bars(runs, "blame", "run") as progress,
    ):
        path = candidate.path if candidate.format == "gguf" else _swap(exact, candidate, set(), folder)
        base = Side("candidate", path, threads=threads).exact()
        total = drift_of(side, base, domains)
        progress(1)
        result: dict[str, Any] = {"kld": total, "windows": sum(len(d.windows) for d in domains)}

        def measured(names: list[str]) -> dict[str, Any]:
            path = _swap(exact, candidate, set(names), folder)
            drop = total - drift_of(side, replace(base, path=path), domains)
            nbytes = sum(candidate.tensors[n].nbytes for n in names)
            return {"share": drop / total if total else 0.0, "bytes": nbytes}

        for partition, rows in each_group(partitions, measured, "share", progress):
            result[partition] = rows
            result[f"{partition}_sum"] = float(sum(r["share"] for r in rows))
    result["keep"] = _keep(result["kinds"])
    return result


def each_group(
    partitions: dict[str, dict[str, list[str]]],
    measured: Callable[[list[str]], dict[str, Any]],
    by: str,
    progress: Callable[[int], object],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each partition, and what was measured of its groups, largest of `by` first."""
    for partition, members in partitions.items():
        rows = []
        for group, names in members.items():
            rows.append({"group": group, **measured(names)})
            progress(1)
        yield partition, sorted(rows, key=lambda r: -r[by])


def _keep(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Kinds that hold more of the drift than of the bytes, most drift per byte first, until half the drift."""
    whole = sum(r["bytes"] for r in rows)
    dense = sorted((r for r in rows if r["share"] > r["bytes"] / whole), key=lambda r: -r["share"] / r["bytes"])
    chosen: list[str] = []
    covered = 0.0
    for row in dense:
        if covered >= 0.5:
            break
        chosen.append(row["group"])
        covered += row["share"]
    return chosen


def _swap(exact: Artifact, candidate: Artifact, names: set[str], folder: str) -> Path:
    """The candidate with some tensors taken from the reference."""
    tensors: list[Stored] = [
        exact.tensors[n if n in exact.tensors else EMBEDDING] if n in names else t for n, t in candidate.tensors.items()
    ]
    renamed = [replace(t, name=n) for n, t in zip(candidate.tensors, tensors, strict=True)]
    renamed += computed(candidate, exact)
    metadata = candidate.metadata or exact.metadata
    return compose(Path(folder) / "swapped.gguf", metadata, renamed, lambda t: candidate.format == "onnx")


def drift_of(reference: Side, candidate: Side, domains: Sequence[Domain]) -> float:
    """Mean KLD of the domains."""
    return float(np.mean([s.kld.mean() for s in measure(reference, candidate, domains).scores.values()]))
