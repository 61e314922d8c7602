"""Give the pieces of every matrix the statistics of its inputs, with columns in the order that the output has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, brief, wrong
from sampan.quantize.stats import Stats, of_shards

from .architecture import HEAD, MLA, Architecture, TensorSpec
from .binding import Binding, Bound
from .family import Family
from .formats.gguf import arrange
from .plan import Format
from .rows import Arrangement

NAMED = 3  # tensors in an error


def weigh(stats: Stats, form: Format, family: Family, arch: Architecture, binding: Binding) -> Binding:
    """The same tensors with statistics in their pieces.

    Raises InputError where the file is another model's or lacks a matrix: a half-weighted output would be neither.
    """
    specs = [b.spec for b in binding.tensors]
    _check_names(stats, _known(family, arch, specs))
    names = {s.name: form.inputs(arch, s) for s in specs if is_linear(s) or s.name == HEAD}
    own = [s for s in specs if s.layer < len(arch.blocks)]  # drafts are not run for statistics, and are written without
    missing = [n for s in own if is_linear(s) and (n := names[s.name]) not in stats.entries]
    if missing:
        raise InputError(
            f"{stats.path}: expected statistics of every matrix, found none of {_some(list(dict.fromkeys(missing)))}; "
            "calibrate again"
        )
    tensors = []
    for bound in binding.tensors:
        name = names.get(bound.spec.name, "")
        if name in stats.entries:
            bound = _weighed(stats, name, bound, form.order(family, arch, bound.spec))
        tensors.append(bound)
    return replace(binding, tensors=tuple(tensors))


def check_source(stats: Stats, sha256: Mapping[str, str | None]) -> None:
    """Refuse statistics of other weights. `sha256`: of each shard by name, None where it is not known yet."""
    recorded, known = stats.about.get("source_sha256"), {k: v for k, v in sha256.items() if v is not None}
    if recorded and len(known) == len(sha256) and (found := of_shards(known)) != recorded:
        hint = "they are another checkpoint's; calibrate again"
        raise wrong(f"{stats.path}: source_sha256", f"{found}, of this checkpoint's shards", brief(recorded), hint)


def is_linear(spec: TensorSpec) -> bool:
    """Whether it is a matrix of a layer that activations are multiplied with; kernels of convolutions are not."""
    return spec.layer >= 0 and len(spec.shape) > 1 and spec.name.endswith(".weight") and "conv1d" not in spec.name


def latent(layer: int) -> str:
    """What statistics call the matrix that k_b and v_b are cut of: its input is the normed latent."""
    return f"blk.{layer}.attn_kv_b.weight"


def column_order(arrangement: Arrangement | None, columns: int) -> NDArray[np.intp] | None:
    """Which column of a GGUF file each column of the checkpoint is; None where they stand alike."""
    if arrangement is None or arrangement.map is None:
        return None
    placed = arrangement.map.apply(np.arange(columns, dtype=np.float32)[None])[0]  # exact: fewer than 2 ** 24
    return np.argsort(placed)


def _weighed(stats: Stats, name: str, bound: Bound, order: NDArray[np.intp] | None) -> Bound:
    experts = bound.spec.shape[0] if len(bound.spec.shape) == 3 else 1
    shared = name != bound.spec.name  # one input for all heads
    each = bound.rows // experts
    pieces = tuple(
        replace(p, inputs=stats.inputs(name, 0 if shared else p.at // each, 1 if shared else experts, order))
        for p in bound.pieces
    )
    return replace(bound, pieces=pieces)


def _known(family: Family, arch: Architecture, specs: Sequence[TensorSpec]) -> dict[str, tuple[int, int]]:
    """Name → matrices and columns of all that statistics of this model can be of."""
    known = {HEAD: (1, arch.hidden)}
    for spec in specs:
        if not is_linear(spec):
            continue
        shape = a.shape if (a := arrange(family, arch, spec)) else spec.shape
        known[spec.name] = (shape[0] if len(shape) == 3 else 1), shape[-1]
        attention = arch.all_blocks[spec.layer].attention
        if isinstance(attention, MLA):
            known[latent(spec.layer)] = 1, attention.kv_lora
    return known


def _check_names(stats: Stats, known: dict[str, tuple[int, int]]) -> None:
    """Refuse statistics of another checkpoint: tensors that this one does not have, or of other widths."""
    hint = "they are another checkpoint's"
    if other := [n for n in stats.entries if n not in known]:
        raise InputError(
            f"{stats.path}: expected statistics of this checkpoint's matrices, found some of {_some(other)}; {hint}"
        )
    for name, entry in stats.entries.items():
        matrices, columns = known[name]
        if entry.values != matrices * columns or len(entry.counts) not in (1, matrices):
            raise InputError(
                f"{stats.path}: {name}: expected {matrices} × {columns} sums, found {entry.values} with "
                f"{len(entry.counts)} counts; {hint}"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(brief(n) for n in names[:NAMED]) + more
