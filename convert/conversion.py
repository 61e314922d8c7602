"""The whole conversion: checkpoint → architecture → plan → fill → artifact with its manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sampan.artifact import manifest_bytes
from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, wrong
from sampan.extras import installed
from sampan.job import Job, open_job
from sampan.quantize import get_scheme
from sampan.quantize.stats import Stats, open_stats
from sampan.registry import load
from sampan.units import human

from . import trial
from .binding import Binding, bind
from .family import read_architecture
from .fill import Filled, Progress, fill
from .lossless import check_lossless, sources
from .plan import Format, Plan, Request
from .shards import Shards, Stream, is_streamed
from .weighting import check_source, weigh
from .work import Work, cut

DEFAULT_MEMORY = 256 * 10**6  # bytes of row buffers
PROGRAM_MEMORY = 250 * 10**6  # bytes that the program and a large vocabulary take beside the buffers, measured


@dataclass(frozen=True, slots=True)
class Conversion:
    """A planned conversion, nothing written yet."""

    checkpoint: Checkpoint
    plan: Plan
    binding: Binding
    work: Work
    out: Path
    jobs: int
    lossless: bool
    options: dict[str, int | str]  # what was asked of the format
    stats: Stats | None = None

    @property
    def artifact(self) -> Path:
        """What to open when it is written: the folder, or the first file."""
        first = self.plan.files[0]
        return self.out if first.folder else first.path

    @property
    def source_bytes(self) -> int:
        return sum(s.size for s in self.checkpoint.shards)

    @property
    def notes(self) -> list[str]:
        """What is left out of the output and what its user has to know, a line each."""
        left_out = [
            f"left out: the {part}, {len(infos)} tensors, {human(sum(t.nbytes for t in infos))}"
            for part, infos in self.binding.left_out.items()
        ]
        return [*left_out, *self.remarks]

    @property
    def remarks(self) -> list[str]:
        """The same without the parts that are left out."""
        return [*self.checkpoint.notes, *self.plan.arch.notes, *self.plan.notes]

    @property
    def peak_memory(self) -> int:
        """Bytes: the row buffers, or what is done behind them, the headers, the program."""
        headers = sum(len(f.header) for f in self.plan.files)
        return max(self.work.buffers(self.jobs), self.plan.memory) + headers + PROGRAM_MEMORY


def prepare(
    checkpoint: Checkpoint,
    out: Path,
    to: str,
    quant: str,
    *,
    jobs: int | None = None,
    max_memory: int = DEFAULT_MEMORY,
    split: int | None = None,
    context: int | None = None,
    accuracy: int | None = None,
    kv: str | None = None,
    lossless: bool = False,
    stats: Path | None = None,
    target: str | None = None,
    mtp: bool = True,
) -> Conversion:
    """Read the config and the headers, choose every type and lay every byte out; `lossless` refuses other numbers.

    `stats`: a file of statistics of the matrices' inputs, which say what errors of each column count. `mtp`: with the
    blocks that predict further tokens, where the format has a place for them.
    """
    form: Format = load("sampan.convert.formats", to, "FORMAT", "--to")
    if target is not None:
        if form.targets is None:
            raise wrong("--target", f"none with --to {to}, which is for processors", repr(target), "add --to onnx")
        form = form.targets(form, target)
    scheme_name = form.portable.get(quant, quant)
    scheme = get_scheme(scheme_name)
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise InputError(f"--output: {str(out)!r} is no UTF-8, as manifests need it; choose another name") from None
    _refuse_output_in_source(checkpoint, out)
    family, arch = read_architecture(checkpoint, drafts=mtp and form.drafts)
    binding = bind(checkpoint, family, arch)
    found = None if stats is None else open_stats(stats)
    if found is not None:
        check_source(found, {s.name: s.sha256 for s in checkpoint.shards})
        binding = weigh(found, form, family, arch, binding)
    request = Request(out, scheme_name, scheme, split, context, accuracy, kv, weighted=found is not None)
    plan = form.plan(checkpoint, family, arch, binding, request)
    if found is not None and not any(t.type.weighted for t in plan.tensors):
        raise wrong("--stats", "a scheme that can use statistics, such as int4", scheme_name)
    jobs = jobs or os.cpu_count() or 1
    if lossless:
        check_lossless(plan)
    work = cut(
        plan.tensors, len(checkpoint.shards), jobs, max_memory, compare=lossless or scheme.native,
        streamed=is_streamed(checkpoint),
    )  # fmt: skip
    asked: tuple[tuple[str, int | str | None], ...] = ("context", context), ("accuracy", accuracy), ("kv", kv)
    options = {k: v for k, v in asked if v is not None}
    return Conversion(checkpoint, plan, binding, work, out, jobs, lossless, options, found)


def _refuse_output_in_source(checkpoint: Checkpoint, out: Path) -> None:
    target = Path(os.path.realpath(out))
    inputs = {Path(os.path.realpath(p)) for p in (checkpoint.folder, *checkpoint.folder.iterdir())}
    if target in inputs and (target.is_dir() or target.suffix != ".gguf"):
        raise wrong("--output", "a file that is not part of the source", str(out))


def convert(
    c: Conversion, *, allow_zero: bool = False, overwrite: bool = False, progress: Progress = lambda n: None
) -> Job:
    """Write the artifact. A killed run leaves `OUT.unfinished/`, and the same call resumes it, as it does behind an
    UnfinishedError.
    """
    with open_job(c.out, c.plan.files, _identity(c, allow_zero), overwrite=overwrite) as job:
        if job.finished:
            return job
        if is_streamed(c.checkpoint):
            shards: Shards = Stream(c.checkpoint, c.work, c.binding, c.out)
        else:
            shards = Shards(c.checkpoint, c.binding)
        with trial.trial(job, c.artifact) as check:

            def step(n: int) -> None:
                check()
                progress(n)

            filled = fill(c.work, shards, job, c.jobs, allow_zero=allow_zero, lossless=c.lossless, progress=step)
        _check_unchanged(c.checkpoint)
        if c.stats is not None:
            check_source(c.stats, filled.sha256)
        manifest = _manifest(c, filled)
        if c.plan.finish is not None:
            more = c.plan.finish(job.artifact, c.jobs)
            job.adopt(more.files)
            manifest |= more.manifest
        manifest["files"] = {f.path.name: f.size for f in job.files}
        job.commit(manifest_bytes(manifest))
    return job


def _identity(c: Conversion, allow_zero: bool) -> dict[str, Any]:
    """What must be the same for an unfinished output to be continued."""
    return {
        "version": f"{version('sampan')}, llama-cpp-python {installed('llama-cpp-python')}",
        "source": _source_identity(c.checkpoint),
        "statistics": c.stats and c.stats.sha256,
        "options": {
            "plan": c.plan.digest(),
            "chunk": c.work.values,
            "allow_zero": allow_zero,
            "compare": c.work.compare,
        },
    }


def _source_identity(checkpoint: Checkpoint) -> list[list[Any]]:
    """Of a streamed shard its SHA-256, which no commit that leaves the weights alone changes."""
    identity: list[list[Any]] = []
    for shard in checkpoint.shards:
        if shard.path is None:
            identity.append([shard.name, shard.size, shard.sha256, shard.header_sha256])
            continue
        status = shard.path.stat()
        identity.append([shard.name, status.st_size, status.st_mtime_ns, shard.header_sha256])
    return identity


def _check_unchanged(checkpoint: Checkpoint) -> None:
    for shard in checkpoint.shards:
        if shard.path is not None and shard.path.stat().st_size != shard.size:
            raise wrong(shard.path, f"{shard.size} bytes", shard.path.stat().st_size, "it changed while it was read")


def _manifest(c: Conversion, filled: Filled) -> dict[str, Any]:
    manifest = {
        "manifest_version": 1,
        "sampan": version("sampan"),
        # an engine may rely on what our graphs do beside the usual
        **({"graph": "sampan"} if c.plan.files[0].folder else {}),
        "llama_cpp_python": installed("llama-cpp-python"),
        "source": {"id": c.checkpoint.source, "revision": c.checkpoint.revision, "sha256": filled.sha256},
        "stored": sources(c.plan.tensors),
        "family": c.plan.arch.family,
        "scheme": c.plan.scheme,
        "options": c.options,
        **({"stats": {"file": c.stats.path.name, "sha256": c.stats.sha256, **c.stats.about}} if c.stats else {}),
        "files": {f.path.name: f.size for f in c.plan.files},
        "bits_per_weight": round(c.plan.bits_per_weight, 4),
        "tensors": places(c.plan),
        "left_out": {part: [t.name for t in infos] for part, infos in c.binding.left_out.items()},
        "notes": c.remarks,
    }
    if c.work.compare:
        manifest["lossless"] = _compared(filled)
    return manifest


def _compared(filled: Filled) -> dict[str, Any]:
    """How many tensors hold the source's numbers, and how far the others are from them."""
    changed = {
        name: {
            "values": d.values, "changed": d.changed,
            "relative": float(f"{(d.error / d.norm) ** 0.5:.6g}") if d.norm else 0.0, "largest": d.largest,
        }
        for name, d in filled.differences.items()
        if d.changed
    }  # fmt: skip
    return {"exact": len(filled.differences) - len(changed), "changed": changed}


def places(plan: Plan) -> dict[str, Any]:
    """Canonical tensor → its type, and where its rows are if the output has arrays instead of it."""
    found: dict[str, Any] = {}
    for t in plan.tensors:
        path, _, last = t.bound.spec.name.rpartition("/")
        array = f"{path}/{last.rpartition('.')[2]}"
        for s in t.slices:
            found[s.name] = {"type": t.type.name, "shape": s.shape, "array": array, "at": s.at, "step": s.step}
        if not t.slices:
            found[t.bound.spec.name] = t.type.name
    return found
