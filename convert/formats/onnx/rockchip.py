"""ONNX folders for Rockchip's NPUs: float graphs in parts, and what Rockchip's compiler makes of them.

rknn-toolkit2 lies in an environment of its own. What it compiled is run in its simulator before the folder gets its
name, and every output compared with the float graph's in ONNX Runtime.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampan import rknn
from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, wrong
from sampan.quantize import Scheme, get_scheme, tensor_type
from sampan.static import EMBEDDING_FILE, TOKENS
from sampan.units import human

from ...architecture import Architecture
from ...binding import Binding
from ...environments import Environment, Step, ask, find
from ...family import Family
from ...plan import Finish, Format, Plan, PlannedTensor, Request
from .. import _kept
from .channels import Channels
from .forms.plain import Plain
from .forms.static import Static, check_blocks
from .graph import Graph
from .npu import Folder, graph_name, lay_out
from .samples import Sampler, texts

TOOLKIT = "rknn-toolkit2==2.5.0"
ENVIRONMENT = Environment(
    name="rknn",
    what="the environment of rknn-toolkit2",
    flag="--make-rknn",
    brings="Rockchip's compiler, under Rockchip's licence, and torch, about 2 GB",
    steps=(  # torch first, where an index may offer a CPU build; the toolkit is fine with a newer one than it declares
        Step(("torch==2.13.0",)),
        Step((
            "numpy==1.26.4", "onnx==1.18.0", "onnxruntime==1.20.1", "protobuf==4.25.4", "scipy==1.14.1",
            "opencv-python-headless==4.10.0.84", "fast-histogram==0.14", "ruamel.yaml==0.19.1", "psutil==7.2.2",
            "tqdm==4.70.1", "setuptools==80.9.0",
        )),
        Step((TOOLKIT,), options=("--no-deps",)),
    ),
    newest=12,
)  # fmt: skip
INSIDE = Path(__file__).with_name("_rknn_inside.py")


@dataclass(frozen=True, slots=True)
class Kind:
    """`type` of the toolkit, None for float16, and its `options`; `least` signal to noise of an output in decibels.

    `far`: what the mask adds to scores that nobody may see, which 8 bits shall not be spent on; `chips` that have it.
    """

    type: str | None
    options: Mapping[str, object]
    least: float
    far: float
    chips: tuple[str, ...] = rknn.CHIPS


KINDS = {  # by the scheme
    "f16": Kind(None, {}, 45, -3e4),
    "w8a8": Kind("w8a8", {}, 20, -50.0),
    "w4a16": Kind("w4a16", {"quantized_method": "group32"}, 15, -3e4, ("rk3576",)),
}
AGAIN = 16  # tokens of each text that a graph of one token is measured on
LIMIT, MOST = 400_000_000, 900_000_000  # bytes of a part's float16 weights, which the toolkit makes float32


def for_chip(usual: Format, chip: str) -> Format:
    """The format of a folder for a chip, made of that for processors."""
    portable = {"int8": "w8a8", "int4": "w4a16", "fp16": "f16"}
    return replace(
        usual, portable=portable, plan=partial(_plan, chip), kept=_kept.plain, holds=holds, compiled=compiled,
        copies=len(TOKENS),
    )  # fmt: skip


def _plan(
    chip: str, checkpoint: Checkpoint, family: Family, arch: Architecture, binding: Binding, request: Request
) -> Plan:
    if request.kv is not None:
        raise wrong("--kv", f"none with --target {chip}", request.kv)
    place = Path() if request.dry else find(ENVIRONMENT, ENVIRONMENT.place)
    check_blocks(arch)
    if request.accuracy is not None:
        raise wrong("--accuracy-level", f"none with --target {chip}", request.accuracy)
    if request.weighted:
        raise wrong("--stats", f"none with --target {chip}, whose compiler rounds the weights", "some")
    known = [name for name, kind in KINDS.items() if chip in kind.chips]
    if request.scheme_name not in known:
        raise wrong("--quant", f"one of {', '.join(known)} with --target {chip}", request.scheme_name)
    weights = Channels(arch, binding, get_scheme("f16"))
    kind = KINDS[request.scheme_name]
    target = {"target": chip, "htp": [], "type": kind.type or "fp16", "far": kind.far}
    limits = LIMIT if request.split is None else request.split, MOST
    laid = lay_out(checkpoint, arch, binding, request, weights, limits, target, Plain, _bytes)
    more = len(TOKENS) * sum(d.end for d in laid.data)
    notes = (*laid.notes, f"compiled graphs come on top, about {human(more)}: two for each part")
    finish = partial(_finish, laid, arch, chip, kind, place)
    tensors = (laid.embedding, *weights.tensors)
    return Plan(request.scheme_name, arch, laid.files, tensors, notes, finish, later=more)


def holds(scheme: Scheme) -> bool:
    """Whether it is one that Rockchip's compiler makes."""
    return any(scheme == get_scheme(name) for name in KINDS)


def compiled(plan: Plan, tensor: PlannedTensor) -> int:
    """Bytes of a weight that the compiler makes of the planned float16, by the scheme's own type."""
    kind, bound = tensor_type(get_scheme(plan.scheme).default), tensor.bound
    return tensor.nbytes if tensor.file == 0 else bound.rows * kind.row_bytes(bound.columns)


def _bytes(graph: Graph, form: Static) -> bytes:
    return bytes(graph.model("sampan", version("sampan")).SerializeToString(deterministic=True))


def _finish(laid: Folder, arch: Architecture, chip: str, kind: Kind, place: Path, folder: Path, threads: int) -> Finish:
    """Compile part by part, and compare."""
    embedding = np.memmap(folder / EMBEDDING_FILE, np.float16, "r").reshape(arch.vocab, arch.hidden)
    folder = folder.absolute()  # for a process elsewhere
    pieces = texts(folder, arch, laid.forms[1].context, embedding)
    run = Sampler(laid.forms, laid.positions, *((pieces, AGAIN) if kind.type else (pieces[:1], 1)), kind.far, threads)
    sizes: dict[str, int] = {}
    decibels: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="rknn.", dir=folder.parent) as temporary:
        for part in range(len(laid.parts)):
            work = Path(temporary) / str(part)
            samples = run.part(part, folder, work)
            for tokens in TOKENS:
                name, at, graph = graph_name(part, tokens), work / str(tokens), laid.forms[tokens].graphs[part]
                out = folder / rknn.compiled(name, chip)
                check = samples[tokens][0]
                (at / "found").mkdir()
                ask(
                    place, INSIDE, at, "compile", f"{name}: rknn-toolkit2", {"TMPDIR": str(at)},
                    graph=folder / name, chip=chip, out=out, type=kind.type, options=kind.options,
                    samples=samples[tokens], check=check, inputs=len(graph.inputs), found=at / "found",
                )  # fmt: skip
                outputs = [e.name for e in graph.outputs]
                decibels[name] = _compared(out.name, at / check, at / "found", outputs, kind.least)
                sizes[out.name] = out.stat().st_size
            shutil.rmtree(work)
    npu = {"toolkit": TOOLKIT, "chip": chip, "type": kind.type or "fp16", "compiled": sizes, "decibels": decibels}
    return Finish(tuple(sizes), {"npu": npu})


def _compared(graph: str, exact: Path, found: Path, outputs: Sequence[str], least: float) -> dict[str, float]:
    """Signal to noise of every output of a call in decibels, the simulator's against ONNX Runtime's."""
    if len(list(found.iterdir())) != len(outputs):
        raise InputError(f"{graph}: expected {len(outputs)} outputs, the simulator gave {len(list(found.iterdir()))}")
    decibels = {
        name: signal_to_noise(np.load(exact / f"out-{n}.npy"), np.load(found / f"{n}.npy"))
        for n, name in enumerate(outputs)
    }
    for name, value in decibels.items():
        if not value >= least:
            raise wrong(
                f"{graph}: {name}", f"at least {least:g} dB over noise in the simulator", f"{value:.1f} dB",
                "another --quant may hold this model",
            )  # fmt: skip
    return decibels


def signal_to_noise(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Decibels: 10 log10 of the sum of squares over that of the difference's; NaN where `found` has one."""
    a, b = exact.astype(np.float64).reshape(-1), found.astype(np.float64).reshape(-1)
    noise = float(np.square(a - b).sum()) if a.size == b.size else float("nan")
    return round(10 * float(np.log10(max(np.square(a).sum(), 1e-30) / max(noise, 1e-30))), 1)
