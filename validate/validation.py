"""The whole validation: texts, checks, scores, verdicts; the report is plain data for text, JSON and HTML."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sampan.artifact import manifest_bytes, write_atomically
from sampan.chat_template import read_templates, special_tokens
from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, wrong
from sampan.files import read_json
from sampan.model import find_model
from sampan.quantize.stats import Stats, open_stats
from sampan.runtime.target import DEFAULT
from sampan.static import is_static
from sampan.units import human

from . import audit as tensors
from . import blame, summary, verdict, windows
from .artifact import Artifact, as_gguf, dequantise, open_artifact
from .bootstrap import FEWEST
from .chat import own_text
from .comparable import (
    EXACT,
    check_comparable,
    check_ids,
    check_options,
    check_tokens,
    dequantises,
    ids_by_engine,
    recorded_stats,
    stats_of,
)
from .conformance import Check, check_metadata, check_tokenizer
from .drift import Drift, Side, measure
from .isolated import EngineDiedError
from .metrics._scores import Scores
from .reference import Bars, Reference, find_reference, fits
from .tokenizer import open_tokenizer
from .windows import Domain

FLOOR_WINDOWS = 2  # of each domain, for a reference's own floor
PARTS = {
    "total": "as deployed", "processor": "of the same integers on the processor", "weights": "of the weights",
    "engine": "of the engine",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line offers; see its help."""

    texts: tuple[Path, ...] = ()
    windows: int | None = None  # of a domain; 32, or few where a target is given
    long: bool = False
    kv: str | None = None
    weights_only: bool = False
    parts: bool = False
    torch: bool = False
    threads: int | None = None
    revision: str | None = None
    limits: tuple[verdict.Limit, ...] = ()
    blame: bool = False
    strict: bool = False
    stats: Path | None = None
    target: str = DEFAULT  # what runs the candidates


def validate(reference: str, candidates: Sequence[Path], options: Options, bars: Bars) -> dict[str, Any]:
    """Compare one or two candidates with a reference; the report as plain data.

    Raises InputError for bad input. A candidate that kills its engine gets a failed verdict.
    """
    if options.blame and len(candidates) > 1:
        raise wrong("--blame", "one CANDIDATE", len(candidates))
    artifacts = [open_artifact(find_model(c)) for c in candidates]
    for artifact in artifacts:
        check_options(artifact, options)
    given = None if options.stats is None else open_stats(options.stats)
    made_with = [stats_of(artifact, given) for artifact in artifacts]
    if given is not None and not any(made_with):
        raise wrong("--stats", "a candidate that was made with them", "none by their manifests")
    grow = max(a.f32_bytes if dequantises(options, a) else a.nbytes for a in artifacts)
    ref = find_reference(reference, options.revision, grow, bars)
    exact = open_artifact(ref.artifact)
    if ref.checkpoint is not None:
        artifacts = [as_gguf(a, ref.checkpoint) if a.format == "onnx" else a for a in artifacts]
    for artifact in artifacts:
        check_comparable(ref, exact, artifact, options)
        if ref.checkpoint is None and exact.format == artifact.format == "gguf":
            check_tokens(exact, artifact)
    texts = _texts(ref, exact, options)
    ids = _ids(ref, texts, exact.vocab)
    for artifact in artifacts:
        if ref.checkpoint is None and "onnx" in (exact.format, artifact.format):
            check_ids(artifact, texts, ids)
    slow = options.target != DEFAULT
    limit = options.windows or (windows.FEW if slow else windows.WINDOWS)
    domains = [windows.cut(name, found, limit, short=slow and limit < FEWEST) for name, found in ids.items()]
    names = [d.name for d in domains]
    verdict.expand(list(options.limits), names)
    report: dict[str, Any] = {
        "metrics_version": summary.METRICS_VERSION,
        "reference": {"source": reference, "artifact": str(ref.artifact), "types": sorted(exact.types)},
        "domains": {d.name: {"windows": len(d.windows), "scored": d.scored * len(d.windows)} for d in domains},
        "options": {"windows": limit, "long": options.long, "kv": options.kv, "target": options.target},
        "candidates": [],
    }
    side = _reference_side(ref, options)
    report["reference"] |= {"engine": side.engine} | _floor(ref, exact, side, domains, bars)
    scores = []
    for artifact, stats in zip(artifacts, made_with, strict=True):
        entry, drift = _candidate(ref, exact, side, artifact, stats, texts, domains, options, bars)
        entry["floor"] = report["reference"]["floor"]  # to be printed beside its numbers
        report["candidates"].append(entry)
        scores.append(drift)
    if len(scores) == 2 and scores[0] and scores[1]:
        report["comparison"] = summary.compare(scores[0], scores[1])
    if options.blame and scores[0]:
        try:
            report["blame"] = _blame(exact, artifacts[0], side, domains, options.threads, bars)
        except EngineDiedError as e:
            entry = report["candidates"][0]
            entry["decisions"].append(asdict(verdict.Decision("failed", f"--blame: {e}")))
            entry["verdict"] = "failed"
    report["verdict"] = _worst([c["verdict"] for c in report["candidates"]])
    return report


def _blame(
    exact: Artifact, artifact: Artifact, side: Side, domains: Sequence[Domain], threads: int | None, bars: Bars
) -> dict[str, Any]:
    if is_static(artifact.path):
        from . import edges  # it loads the onnx package

        return edges.blame(artifact.path, side, _sample(domains, 1), threads, bars)
    return blame.blame(exact, artifact, side, _sample(domains, 4), threads, bars, EXACT)


def record(report: dict[str, Any], manifest: Path) -> None:
    """Write the verdict on a report's first candidate into its manifest."""
    data = read_json(manifest)
    candidate = report["candidates"][0]
    data["validation"] = {
        "verdict": candidate["verdict"],
        "metrics_version": report["metrics_version"],
        "domains": report["domains"],
        "decisions": candidate["decisions"],
        "drift": candidate.get("drift"),
    }
    write_atomically(manifest, manifest_bytes(data))


def _texts(ref: Reference, exact: Artifact, options: Options) -> dict[str, str]:
    if options.texts:
        return windows.user_texts(options.texts)
    if ref.checkpoint is not None:
        templates, special = read_templates(ref.checkpoint.folder), special_tokens(ref.checkpoint.folder)
    else:
        templates, special = exact.templates, exact.special
    return windows.domain_texts(lambda c: own_text(templates, special, c), options.long)


def _ids(ref: Reference, texts: dict[str, str], vocab: int) -> dict[str, list[int]]:
    """Token ids by the reference's own tokenizer."""
    if ref.checkpoint is not None:
        tokenizer = open_tokenizer(ref.checkpoint.folder, vocab)
        return {name: tokenizer.encode(text) for name, text in texts.items()}
    return ids_by_engine(ref.artifact, texts)


def _reference_side(ref: Reference, options: Options) -> Side:
    side = Side("reference", ref.artifact, threads=options.threads).exact()
    if not options.torch:
        return side
    if ref.checkpoint is None:
        raise wrong("--reference torch", "a checkpoint as REFERENCE", "an artifact")
    return replace(side, path=ref.checkpoint.folder, engine="torch")


def _sample(domains: Sequence[Domain], n: int) -> list[Domain]:
    return [replace(d, windows=d.windows[:n]) for d in domains if len(d.windows) > 1] or list(domains)


def _floor(ref: Reference, exact: Artifact, side: Side, domains: Sequence[Domain], bars: Bars) -> dict[str, Any]:
    """KLD of the reference from its own weights in float32, which is what no candidate can be told from.

    `floor_experts` is `Drift.experts` of the same two runs.
    """
    if side.engine == "torch" or exact.types <= {"f32"}:
        return {"floor": 0.0, "floor_experts": None}
    if exact.format == "onnx":
        return {"floor": "not measured: an ONNX folder", "floor_experts": None}
    if not fits(exact.f32_bytes + exact.nbytes):
        return {"floor": "not measured: does not fit", "floor_experts": None}
    with tempfile.TemporaryDirectory(dir=ref.artifact.parent) as folder:
        whole = replace(side, path=dequantise(exact, exact, Path(folder) / "f32.gguf"))
        sample, own = _sample(domains, FLOOR_WINDOWS), replace(side, role="candidate")
        drift = _measure(whole, own, sample, "floor", bars, experts=exact.experts)
    kld = float(np.mean([s.kld.mean() for s in drift.scores.values()]))
    return {"floor": kld, "floor_experts": drift.experts}


def _measure(a: Side, b: Side, domains: Sequence[Domain], what: str, bars: Bars, *, experts: bool = False) -> Drift:
    with bars(sum(d.scored * len(d.windows) for d in domains), what, "token") as progress:
        try:
            return measure(a, b, domains, progress, experts=experts)
        except EngineDiedError as e:
            if e.role == "reference":
                raise InputError(f"{a.path}: the reference cannot be run: {e}") from None
            raise


def _candidate(
    ref: Reference, exact: Artifact, side: Side, artifact: Artifact, stats: Stats | None, texts: dict[str, str],
    domains: Sequence[Domain], options: Options, bars: Bars,
) -> tuple[dict[str, Any], dict[str, Scores] | None]:  # fmt: skip
    """A candidate's part of the report, and its scores unless its engine died."""
    entry: dict[str, Any] = {
        "path": str(artifact.path),
        "bytes": artifact.nbytes,
        "bits_per_weight": artifact.bits_per_weight,
        "types": sorted(artifact.types),
    }
    checks = _checks(ref, artifact, stats, texts, entry, bars)
    entry["checks"] = [asdict(c) | {"result": c.result} for c in checks]
    limits = list(options.limits) or verdict.default_limits(artifact.nominal_bits)
    decisions = [verdict.Decision("failed", f"{c.name}: {c.findings[0]}{_more(c)}") for c in checks if c.findings]
    if options.strict:
        decisions += [verdict.Decision("failed", f"{c.name}: {line}") for c in checks for line in c.known]
    scores = None
    try:
        drifts = _drifts(side, exact, artifact, domains, options, bars)
        entry["drift"] = {name: summary.summarise(d.scores) for name, d in drifts.items()}
        if "processor" in drifts:
            compared = summary.compare(drifts["total"].scores, drifts["processor"].scores)
            entry["target"] = compared | {"name": options.target}
        main = next(iter(drifts))
        entry["experts"] = drifts[main].experts
        if artifact.experts and entry["experts"] is None:
            entry["experts"] = "not measured: the reference or the candidate does not tell them"
        scores = drifts[main].scores
        entry |= {"positions": _along(scores, domains), "histogram": summary.histogram(scores)}
        numbers, titles = entry["drift"][main], summary.metrics()
        decisions += [
            verdict.decide(limit, numbers[limit.domain], titles[limit.metric].title, len(domains), domains[0].chunk)
            for limit in verdict.expand(limits, [d.name for d in domains])
        ]
    except EngineDiedError as e:
        decisions.append(verdict.Decision("failed", str(e)))
    except InputError as e:
        if not decisions:  # nothing explains it: bad input
            raise
        decisions.append(verdict.Decision("failed", str(e)))
    entry["decisions"] = [asdict(d) for d in decisions]
    entry["verdict"] = _worst([d.outcome for d in decisions])
    return entry, scores


def _more(check: Check) -> str:
    return f" (and {len(check.findings) - 1} more)" if len(check.findings) > 1 else ""


def _checks(
    ref: Reference, artifact: Artifact, stats: Stats | None, texts: dict[str, str], entry: dict[str, Any], bars: Bars
) -> list[Check]:
    if ref.checkpoint is None:
        return []
    if not artifact.tensors:
        entry["tensors"] = []
        none = "the manifest does not place the tensors" if artifact.manifest else "the folder has no manifest"
        return [Check("tensors", none, (), compared=False), Check("metadata", none, (), compared=False),
                *check_tokenizer(ref.checkpoint, artifact, list(texts.values()))]  # fmt: skip
    with bars(tensors.audit_bytes(ref.checkpoint, artifact), "auditing the tensors", "B") as progress:
        start = time.monotonic()
        found = tensors.audit(ref.checkpoint, artifact, progress, stats=stats)
        rate = found.nbytes / (time.monotonic() - start)
    entry["tensors"] = [asdict(t) for t in found.tensors]
    entry["audit"] = {"bytes": found.nbytes, "bytes_per_second": rate}
    what = f"{len(found.tensors)} tensors, {human(found.nbytes)} at {human(rate)}/s"
    if stats is None and recorded_stats(artifact):
        what += "; made with statistics, which --stats would judge its rows by"
    return [
        Check("tensors", what, tuple(found.findings)),
        _metadata(ref.checkpoint, artifact),
        *check_tokenizer(ref.checkpoint, artifact, list(texts.values())),
    ]


def _metadata(checkpoint: Checkpoint, artifact: Artifact) -> Check:
    if artifact.format == "gguf":
        return check_metadata(checkpoint, artifact)
    from .folder import check_folder  # it loads the onnx package

    return check_folder(checkpoint, artifact)


def _drifts(
    side: Side, exact: Artifact, artifact: Artifact, domains: Sequence[Domain], options: Options, bars: Bars
) -> dict[str, Drift]:
    """The drift that the verdict is about, first, and its parts where asked for."""
    deployed = Side("candidate", artifact.path, kv=options.kv, threads=options.threads, target=options.target)
    name = artifact.path.name
    found: dict[str, Drift] = {}
    if options.target != DEFAULT:
        found["total"] = _measure(side, deployed, domains, f"{name} on {options.target}", bars)
        found["processor"] = _measure(side, replace(deployed, target=DEFAULT), domains, f"{name} on cpu", bars)
    elif not options.weights_only:
        found["total"] = _measure(side, deployed, domains, name, bars, experts=artifact.experts)
    if options.weights_only or options.parts:
        with tempfile.TemporaryDirectory(dir=artifact.path.parent, prefix=".sampan-") as folder:
            with bars(1, f"dequantising {name}", "file") as done:
                plain = replace(deployed, path=dequantise(artifact, exact, Path(folder) / "f32.gguf")).exact()
                done(1)
            found["weights"] = _measure(side, plain, domains, f"{name}, weights", bars, experts=artifact.experts)
            if options.parts:
                found["engine"] = _measure(replace(plain, role="reference"), deployed, domains, f"{name}, engine", bars)
    return found


def _along(scores: dict[str, Scores], domains: Sequence[Domain]) -> dict[str, list[float]]:
    """Mean KLD along the position inside a window, in 16 steps."""
    out = {}
    for d in domains:
        kld = scores[d.name].kld.reshape(len(d.windows), d.scored)
        out[d.name] = [float(part.mean()) for part in np.array_split(kld, 16, axis=1)]
    return out


def _worst(outcomes: Sequence[str]) -> str:
    return next((o for o in ("failed", "undecided") if o in outcomes), "passed")
