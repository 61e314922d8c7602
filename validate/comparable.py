"""What is refused before anything is measured: options that do not fit, and models that cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sampan import runtime
from sampan.artifact import manifest_path
from sampan.errors import InputError, brief, wrong
from sampan.files import read_json_if_there
from sampan.quantize.stats import Stats
from sampan.runtime.target import DEFAULT
from sampan.static import is_static, read_layout

from .artifact import Artifact
from .isolated import EngineDiedError, messages
from .reference import Reference

if TYPE_CHECKING:
    from .validation import Options

EXACT = frozenset(("f32", "bf16", "f16"))


def check_options(candidate: Artifact, options: Options) -> None:
    """Refuse what cannot be done, before anything is measured."""
    if options.blame and candidate.tensors and candidate.types <= EXACT:
        raise wrong("--blame", "a candidate with quantised tensors", f"{candidate.path} without")
    if options.target != DEFAULT:  # what it cannot open it says now
        runtime.open(candidate.path, runtime.EngineOptions(vocabulary_only=True), target=options.target).close()
        if options.weights_only or options.blame:
            found = "--weights-only" if options.weights_only else "--blame"
            raise wrong(f"--target {options.target}", "a run of the artifact as it is", found)
    if candidate.format == "gguf":
        return
    asked = candidate.manifest.get("options")
    cache = "int8" if isinstance(asked, dict) and asked.get("kv") == "int8" else "f32"
    if is_static(candidate.path):
        layout = read_layout(candidate.path)
        cache = "f16" if layout.type else "q8_0"
        if layout.type and options.blame:
            raise wrong("--blame", "a folder whose activations are integers", f"{candidate.path} with floats")
        if layout.type not in ("", "fp16") and options.target == DEFAULT:
            found = f"{layout.type}, which only {layout.target} computes"
            raise wrong(candidate.path, "numbers that the processor has too", found, "the manifest has the simulator's")
    if options.kv not in (None, cache):
        raise wrong("--kv", f"{cache}, the cache of the ONNX folder {candidate.path}", options.kv)
    if (where := dequantises(options, candidate)) and not candidate.tensors:
        raise wrong(where, "a candidate whose manifest names its tensors", f"{candidate.path} without one")


def recorded_stats(artifact: Artifact) -> str | None:
    """SHA-256 of the statistics that an artifact was made with, as its manifest says; "" without a manifest."""
    manifest = read_json_if_there(manifest_path(artifact.path))
    stats = manifest.get("stats")
    return str(stats.get("sha256")) if isinstance(stats, dict) else None if manifest else ""


def stats_of(artifact: Artifact, stats: Stats | None) -> Stats | None:
    """The given statistics for a candidate that was made with them, or that does not say; none for one without."""
    recorded = recorded_stats(artifact)
    if stats is None or recorded is None:
        return None
    if recorded not in ("", stats.sha256):
        hint = "it was made with other statistics"
        raise wrong(f"--stats: {stats.path}", f"SHA-256 {recorded}, as {artifact.path} says", stats.sha256, hint)
    return stats


def check_comparable(ref: Reference, exact: Artifact, candidate: Artifact, options: Options) -> None:
    """Refuse another architecture or a vocabulary of another size: no numbers would mean anything."""
    pairs = [("vocabulary", f"{exact.vocab} tokens", f"{candidate.vocab} tokens")]
    if exact.architecture and candidate.architecture:  # a folder that is not ours does not say
        pairs.insert(0, ("architecture", exact.architecture, candidate.architecture))
    for what, a, b in pairs:
        if a != b:
            raise wrong(f"{candidate.path}: {what}", f"{a}, as the reference has", b)
    where = dequantises(options, candidate)
    if candidate.format == "onnx" and where and ref.checkpoint is None:  # it tells the order of rows in a GGUF file
        raise wrong(where, "a checkpoint as REFERENCE for an ONNX folder", exact.path)
    if exact.format == "onnx" and options.blame:
        raise wrong("--blame", "a checkpoint or a GGUF file as REFERENCE", f"the ONNX folder {exact.path}")


def check_ids(candidate: Artifact, texts: dict[str, str], wanted: dict[str, list[int]]) -> None:
    """Refuse a tokenizer that reads the texts otherwise, where token lists are not stored in the same way."""
    for name, found in ids_by_engine(candidate.path, texts).items():
        want = wanted[name]
        if found != want:
            pairs = enumerate(zip(want, found, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(want), len(found)))
            a, b = (ids[at] if at < len(ids) else "the end" for ids in (want, found))
            raise wrong(f"{candidate.path}: vocabulary: token {at} of {name}", f"{a}, as the reference reads", b)


def check_tokens(exact: Artifact, candidate: Artifact) -> None:
    """Refuse other tokens where no checkpoint's tokenizer is there to name them one by one."""
    key = "tokenizer.ggml.tokens"
    pairs = enumerate(zip(exact.value(key), candidate.value(key), strict=True))
    at, (a, b) = next(((i, p) for i, p in pairs if p[0] != p[1]), (0, ("", "")))
    if a != b:
        raise wrong(f"{candidate.path}: vocabulary", f"{brief(a)} at {at}, as the reference has", brief(b))


def dequantises(options: Options, candidate: Artifact) -> str:
    """The option that asks for a run of the candidate's weights in float32, or nothing."""
    blame = options.blame and candidate.format == "onnx" and not is_static(candidate.path)
    flags = {"--blame": blame, "--weights-only": options.weights_only, "--parts": options.parts}
    return next((name for name, on in flags.items() if on), "")


def ids_by_engine(path: Path, texts: dict[str, str]) -> dict[str, list[int]]:
    task = {"task": "tokenize", "path": str(path), "texts": [(t, True, True) for t in texts.values()]}
    try:
        ids = next(m["ids"] for m in messages(task) if "ids" in m)
    except EngineDiedError as e:
        raise InputError(f"{path}: {e}") from None
    return dict(zip(texts, ids, strict=True))
