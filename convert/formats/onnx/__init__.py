"""ONNX for ONNX Runtime: a graph written from the Architecture, weights in external data, ready for generation."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampan.artifact import OutputFile
from sampan.checkpoint import Checkpoint
from sampan.errors import wrong
from sampan.onnx import GRAPH, read_graph

from ...architecture import MLA, Architecture, TensorSpec
from ...binding import Binding
from ...family import Family
from ...generation import notes, resolve
from ...plan import Finish, Format, Plan, Request
from ...tokenizer import read_tokenizer
from ...weighting import column_order, latent
from .. import _kept
from ..gguf import arrange
from .caches import check, filled, scales
from .decoder import write
from .folder import companions
from .forms.cpu import Cpu
from .graph import DATA_FILE, Graph
from .npu import for_target
from .weights import Weights, holds

KV = ("f32", "int8")  # number types of a graph's cache
WORK = 300 * 10**6  # bytes that the search for scales takes beside two copies of the weights, measured
CONTEXT = 32_768  # positions of the rotary tables, where the model has more: 16.8 MB at 128 dimensions


def plan(checkpoint: Checkpoint, family: Family, arch: Architecture, binding: Binding, request: Request) -> Plan:
    """The graph file, the data file's layout and the small files beside them."""
    if request.split is not None:
        raise wrong("--split-size", "none with --to onnx, whose data file may have any size", request.split)
    context = request.context or min(arch.context, CONTEXT)
    if context > arch.longest:
        raise wrong("--context", f"at most the model's own {arch.longest}", context)
    if request.kv not in (None, *KV):
        raise wrong("--kv", f"one of {', '.join(KV)}", request.kv)
    int8 = request.kv == "int8"
    if int8 and not request.dry:
        check()
    model, weights = _graph(arch, binding, request, context, int8=int8)
    finish = None
    if int8:
        finish = partial(_scaled, _graph(arch, binding, request, context, int8=False)[0], arch, context)
    header = b"".join(t.tobytes() for t in weights.tables)
    tokenizer = request.tokenizer or read_tokenizer(checkpoint.folder, arch.vocab)
    generation = resolve(checkpoint.folder, tokenizer)
    small = {"model.onnx": model, **companions(checkpoint, family, arch, context, tokenizer, generation)}
    files = [OutputFile(request.out / DATA_FILE, header, weights.end, folder=True)]
    files += [OutputFile(request.out / name, data, len(data), folder=True) for name, data in small.items()]
    return Plan(
        request.scheme_name, arch, tuple(files), tuple(weights.tensors), tuple(notes(generation)), finish,
        memory=2 * weights.end + WORK if finish else 0,
    )  # fmt: skip


def _graph(
    arch: Architecture, binding: Binding, request: Request, context: int, *, int8: bool
) -> tuple[bytes, Weights]:
    """The graph file, and the layout of the data file, which is the same with all types of caches."""
    graph, weights = Graph(), Weights(arch, binding, request.scheme_name, request.scheme)
    accuracy = 4 if request.accuracy is None else request.accuracy
    write(Cpu(graph, weights, arch, context, accuracy, int8=int8), arch)
    return graph.model("sampan", version("sampan")).SerializeToString(deterministic=True), weights


def _scaled(exact: bytes, arch: Architecture, context: int, folder: Path, threads: int) -> Finish:
    """Find the scales of int8 caches with `exact`, the same graph with float32 ones, and write them into the graph."""
    found = scales(exact, folder, arch, context, threads)
    path = folder / GRAPH
    model = filled(read_graph(folder).model, found).SerializeToString(deterministic=True)
    if len(model) != path.stat().st_size:
        raise AssertionError(f"{path}: {len(model)} bytes")
    path.write_bytes(model)
    return Finish((), {})


def _inputs(arch: Architecture, spec: TensorSpec) -> str:
    """k_b and v_b are multiplied with the latent, as one matrix; in a GGUF file with queries and with mixed latents."""
    attends = spec.layer >= 0 and isinstance(arch.blocks[spec.layer].attention, MLA)
    return latent(spec.layer) if attends and spec.name.endswith(("attn_k_b.weight", "attn_v_b.weight")) else spec.name


def _order(family: Family, arch: Architecture, spec: TensorSpec) -> NDArray[np.intp] | None:
    """Statistics stand as in a GGUF file, columns here as in the checkpoint."""
    return column_order(arrange(family, arch, spec), spec.shape[-1])


FORMAT = Format(
    portable={"int8": "q8_0", "native": "native_onnx", "fp16": "f16", "fp32": "f32"}, plan=plan, kept=_kept.onnx,
    holds=holds, inputs=_inputs, order=_order, targets=for_target, positions=True,
)  # fmt: skip
