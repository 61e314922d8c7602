"""ONNX folders for NPUs: static graphs on integers, in parts, and what the device's compiler makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan import qnn, rknn
from sampan.artifact import OutputFile
from sampan.checkpoint import Checkpoint
from sampan.errors import wrong
from sampan.quantize import Scheme, tensor_type
from sampan.quantize.channel import ChannelType
from sampan.static import EMBEDDING_FILE, LAYOUT, QUANTITIES, TABLES_FILE, TOKENS
from sampan.units import human

from ...architecture import EMBEDDING, HEAD, LOOKED_UP, Architecture
from ...binding import Binding
from ...family import Family
from ...generation import notes, resolve
from ...plan import Finish, Format, Plan, PlannedTensor, Request
from ...tokenizer import read_tokenizer
from .. import _kept
from .calibration import measure, needs, reach
from .centres import fill
from .channels import Channels, DataFile, by_layer
from .compiled import needs as compiler_needs
from .decoder import write
from .folder import as_json, words
from .forms.static import Static, check_blocks
from .graph import Graph
from .qdq import Quantity, activations, quantised
from .rope import tables

CONTEXT = 4096  # slots of the cache, where the model has more
LIMIT, MOST = 1_500_000_000, 2_000_000_000  # bytes of a part: the usual, and what a compiled context may have


@dataclass(frozen=True, slots=True)
class Part:
    """Layers in a row, -1 for what follows the last one; `cut`: the norm that it begins with."""

    layers: tuple[int, ...]
    cut: str | None


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is being laid out. `forms`: the float graphs by their tokens; `positions`: cos and sin."""

    parts: Sequence[Part]
    data: Sequence[DataFile]
    forms: Mapping[int, Static]
    positions: Mapping[str, NDArray[np.float32]]
    embedding: PlannedTensor
    files: tuple[OutputFile, ...]
    notes: tuple[str, ...]


def for_target(usual: Format, target: str) -> Format:
    """The format of a folder for `target`, made of that for processors."""
    if target in rknn.CHIPS:
        from .rockchip import for_chip

        return for_chip(usual, target)
    plan = partial(_plan, target, qnn.versions(target))
    portable = {"int4": "a16w4", "int8": "a16w8"}
    return replace(usual, portable=portable, plan=plan, kept=_kept.static, holds=holds, copies=len(TOKENS))


def holds(scheme: Scheme) -> bool:
    """Whether it is one of integers by row."""
    return isinstance(tensor_type(scheme.default), ChannelType)


def _plan(
    target: str,
    htp: Sequence[str],
    checkpoint: Checkpoint,
    family: Family,
    arch: Architecture,
    binding: Binding,
    request: Request,
) -> Plan:
    """Every byte but those of the compiled contexts, which are bounded part by part."""
    if request.kv is not None:
        raise wrong("--kv", f"none with --target {target}, whose caches have 8 bits", request.kv)
    if not request.dry:
        qnn.check()
    check_blocks(arch)
    if request.accuracy is not None:
        raise wrong("--accuracy-level", "none with --target, whose activations have 16 bits", request.accuracy)
    if request.scheme_name not in ("a16w8", "a16w4"):
        raise wrong("--quant", f"a16w8 or a16w4 (int8, int4) with --target {target}", request.scheme_name)
    weights, limit = Channels(arch, binding, request.scheme), LIMIT if request.split is None else request.split
    laid = lay_out(
        checkpoint, arch, binding, request, weights, (limit, MOST), {"target": target, "htp": list(htp)}, Static, _empty
    )
    more = len(htp) * len(TOKENS) * sum(d.end for d in laid.data)
    compiled = f"compiled graphs come on top, about {human(more)}: two for each part and each of HTP {', '.join(htp)}"
    context = laid.forms[TOKENS[0]].context
    ranges = needs(weights, arch, laid.parts, laid.data, context)
    return Plan(
        request.scheme_name, arch, laid.files, (laid.embedding, *weights.tensors), (*laid.notes, compiled),
        partial(
            _finish, laid.forms, weights, arch, laid.parts, laid.data, rotary(arch, reach(context)), tuple(htp),
            max(limit, *(d.end for d in laid.data)),
        ),
        later=more, memory=max(ranges, *(compiler_needs(d.end) for d in laid.data)),
    )  # fmt: skip


def lay_out(
    checkpoint: Checkpoint,
    arch: Architecture,
    binding: Binding,
    request: Request,
    weights: Channels,
    limits: tuple[int, int],
    target: Mapping[str, Any],
    kind: type[Static],
    as_bytes: Callable[[Graph, Static], bytes],
) -> Folder:
    """All files of a folder. `limits`: bytes of a part, and the most that may be asked for; `target`: what the layout
    says of it; `kind` writes the graphs, `as_bytes` their files.
    """
    context = request.context or min(arch.context, CONTEXT)
    if not TOKENS[0] <= context <= arch.longest:
        raise wrong("--context", f"{TOKENS[0]} to the model's own {arch.longest}", context)
    parts = cut(arch, binding, weights, *limits, alone=request.split is None)
    zeros = weights.zeros()
    data = [DataFile(n + 1, f"part-{n + 1}.data", zeros) for n in range(len(parts))]
    forms = {tokens: static(weights, arch, context, tokens, data, parts, kind) for tokens in TOKENS}
    embedding = _embedding(binding, arch)
    tokenizer = request.tokenizer or read_tokenizer(checkpoint.folder, arch.vocab)
    generation = resolve(checkpoint.folder, tokenizer)
    positions = rotary(arch, context)
    out = request.out
    files = [OutputFile(out / EMBEDDING_FILE, b"", embedding.nbytes, folder=True)]
    files += [OutputFile(out / d.name, bytes(zeros), d.end, folder=True) for d in data]
    layout = {
        **target, "context": context, "tokens": list(TOKENS), "vocab": arch.vocab,
        "hidden": arch.hidden, "ends": list(generation.ends), "longest": arch.longest,
        "parts": [
            {"graphs": {str(t): graph_name(n, t) for t in TOKENS}, "data": d.name, "layers": list(parts[n].layers)}
            for n, d in enumerate(data)
        ],
        "tables": {name: list(values.shape) for name, values in positions.items()},
    }  # fmt: skip
    small = {
        graph_name(n, tokens): as_bytes(graph, form)
        for tokens, form in forms.items()
        for n, graph in enumerate(form.graphs)
    }
    small[TABLES_FILE] = b"".join(t.tobytes() for t in positions.values())
    small |= words(checkpoint.folder, arch.vocab, generation) | {LAYOUT: as_json(layout)}
    files += [OutputFile(out / name, data, len(data), folder=True) for name, data in small.items()]
    return Folder(parts, data, forms, positions, embedding, tuple(files), tuple(notes(generation)))


def graph_name(part: int, tokens: int) -> str:
    return f"part-{part + 1}.{tokens}.onnx"


def rotary(arch: Architecture, context: int) -> dict[str, NDArray[np.float32]]:
    """cos and sin of every rotation [context, half], named as the graphs' inputs."""
    return {
        f"{name}{n or ''}": values
        for n, rope in enumerate(arch.ropes)
        for name, values in zip(("cos", "sin"), tables(rope, context), strict=True)
    }


def static(
    weights: Channels,
    arch: Architecture,
    context: int,
    tokens: int,
    data: Sequence[DataFile],
    parts: Sequence[Part],
    kind: type[Static] = Static,
) -> Static:
    """The float graphs of all parts."""
    cuts = {part.cut: n for n, part in enumerate(parts) if part.cut}
    form = kind(weights, arch, context, tokens, data, cuts)
    write(form, arch)
    return form


def cut(
    arch: Architecture, binding: Binding, weights: Channels, limit: int, most: int, *, alone: bool = False
) -> list[Part]:
    """Parts of at most `limit` bytes of weights, at the borders of layers; `alone`: what is larger, up to `most`, is a
    part of its own.
    """
    if limit > most:
        raise wrong("--split-size", f"at most {human(most)}, the most that a compiled part may have", f"{limit} bytes")
    parts: list[list[int]] = []
    size = 0
    for layer, names in by_layer(arch, binding).items():
        used = {EMBEDDING if arch.tied and n == HEAD else n for n in names if n != EMBEDDING or arch.tied}
        nbytes = sum(weights.nbytes(n) for n in used)
        what = "the head" if layer < 0 else f"layer {layer}"
        if nbytes > most:
            raise wrong("--target", f"layers and a head of at most {human(most)}", f"{human(nbytes)} in {what}")
        if nbytes > limit and not alone:
            raise wrong("--split-size", f"at least the {human(nbytes)} of {what}", human(limit))
        if not parts or size + nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(layer)
        size += nbytes
    return [Part(tuple(p), _norm(p[0]) if n else None) for n, p in enumerate(parts)]


def each_layer(arch: Architecture) -> list[Part]:
    """A part for each layer and for the head."""
    return [Part((i,), _norm(i) if i else None) for i in (*range(len(arch.blocks)), -1)]


def _norm(layer: int) -> str:
    """The first weight of a part."""
    return "output_norm.weight" if layer < 0 else f"blk.{layer}.attn_norm.weight"


def _embedding(binding: Binding, arch: Architecture) -> PlannedTensor:
    """float16 rows, which the runtime looks up; beside a tied head, which has other numbers, by another name."""
    bound = next(b for b in binding.tensors if b.spec.name == EMBEDDING)
    if arch.tied:
        bound = replace(bound, spec=replace(bound.spec, name=LOOKED_UP))
    return PlannedTensor(bound, tensor_type("f16"), 0, (0,))


def _bytes(graph: Graph, quantities: Mapping[str, Quantity | None], form: Static) -> bytes:
    """A graph's file; quantities that are not known yet take as many bytes."""
    leaders = _caches(graph, form)
    known = {n: q or Quantity(8 if n in leaders else 16, 0.0, 0) for n, q in quantities.items()}
    model = quantised(graph, known).model("sampan", version("sampan"))
    return bytes(model.SerializeToString(deterministic=True))


def _empty(graph: Graph, form: Static) -> bytes:
    return _bytes(graph, dict.fromkeys(_coded(graph, form)), form)


def _coded(graph: Graph, form: Static) -> list[str]:
    """Activations that have quantities."""
    return [e.name for e in activations(graph) if e.name not in form.floats]


def _caches(graph: Graph, form: Static) -> set[str]:
    """Activations of 8 bits."""
    from .qdq import groups

    found = groups(graph)
    leaders = {found[n] for n in form.caches if n in found}
    return {n for n, leader in found.items() if leader in leaders}


def _finish(
    forms: Mapping[int, Static],
    weights: Channels,
    arch: Architecture,
    parts: Sequence[Part],
    data: Sequence[DataFile],
    positions: Mapping[str, NDArray[np.float32]],
    htp: Sequence[str],
    limit: int,
    folder: Path,
    threads: int,
) -> Finish:
    """Measure the ranges, write them into the graphs, compile."""
    from .compiled import compiled

    found, centres = measure(forms[TOKENS[0]], weights, arch, parts, data, positions, folder, threads)
    for tokens, form in forms.items():
        for n, graph in enumerate(form.graphs):
            fill(graph, centres)
            path = folder / graph_name(n, tokens)
            made = _bytes(graph, {name: found[name] for name in _coded(graph, form)}, form)
            if len(made) != path.stat().st_size:
                raise AssertionError(f"{path}: {len(made)} bytes")
            path.write_bytes(made)
    listed = {name: [q.bits, q.scale, q.zero] for name, q in found.items()}
    (folder / QUANTITIES).write_text(json.dumps(listed, indent=0))
    graphs = [graph_name(n, t) for n in range(len(parts)) for t in TOKENS]
    sizes, names = compiled(folder, graphs, htp, limit)
    return Finish((QUANTITIES, *names), {"npu": {"qnn": qnn.check(), "htp": list(htp), "compiled": sizes}})
