"""The four things that sampan does, as functions: open, convert, validate, inspect.

They raise InputError with one line for bad input, as the commands print it, and print nothing themselves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sampan.runtime import EngineOptions, Session
    from sampan.validate.validation import Options

Location = str | os.PathLike[str]
Verdict = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True, slots=True)
class Converted:
    """A finished artifact: `path` is what to open, `nbytes` the size of all `files`, `notes` what to know of it."""

    path: Path
    files: tuple[Path, ...]
    scheme: str
    nbytes: int
    bits_per_weight: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Validated:
    """A verdict, and the whole report as `sampan validate --json` writes it."""

    verdict: Verdict
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What something is; `data` has all that `sampan inspect --tensors --json` prints."""

    kind: Literal["checkpoint", "gguf", "onnx", "statistics"]
    nbytes: int
    tensors: tuple[Mapping[str, Any], ...]  # name, shape, type, bytes of each
    data: Mapping[str, Any]


def open(path: Location, options: EngineOptions | None = None, *, target: str = "cpu") -> Session:
    """Open an artifact, a GGUF file or an ONNX folder, to tokenise, score and answer; as `sampan.runtime.open`."""
    from sampan import runtime

    return runtime.open(path, options, target=target)


def convert(
    source: Location,
    output: Location,
    *,
    to: str = "gguf",
    quant: str = "int4",
    revision: str | None = None,
    stream: bool = False,
    jobs: int | None = None,
    context: int | None = None,
    kv: str | None = None,
    split: int | None = None,
    lossless: bool = False,
    stats: Location | None = None,
    target: str | None = None,
    mtp: bool = True,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> Converted:
    """Convert a checkpoint folder or a hub id. The arguments are the options of `sampan convert`, `split` in bytes.

    `progress` hears of bytes of the source as they are done. A call that was killed goes on where it stopped when it
    is made again.
    """
    from sampan.convert.conversion import convert, prepare
    from sampan.hub import open_source

    checkpoint = open_source(os.fspath(source), revision, headers_only=False, stream=stream)
    c = prepare(
        checkpoint, Path(output), to, quant, jobs=jobs, context=context, kv=kv, split=split, lossless=lossless,
        stats=None if stats is None else Path(stats), target=target, mtp=mtp,
    )  # fmt: skip
    job = convert(c, overwrite=overwrite, progress=progress)
    files, nbytes = tuple(f.path for f in job.files), sum(f.size for f in job.files)
    return Converted(c.artifact, files, c.plan.scheme, nbytes, c.plan.bits_per_weight, tuple(c.notes))


def validate(reference: Location, *candidates: Location, options: Options | None = None) -> Validated:
    """Compare one or two artifacts with a checkpoint, a hub id or another artifact.

    Call it where `__main__` can be imported again: engines run in a process of their own.
    """
    from sampan.errors import wrong
    from sampan.validate.validation import Options, validate

    if not 0 < len(candidates) < 3:
        raise wrong("candidates", "one or two", len(candidates))
    report = validate(os.fspath(reference), [Path(c) for c in candidates], options or Options(), _quiet)
    return Validated(report["verdict"], report)


@contextlib.contextmanager
def _quiet(total: int, title: str, unit: str) -> Iterator[Callable[[int], None]]:
    """In place of a progress bar."""
    yield lambda n: None


def inspect(path: Location, *, revision: str | None = None) -> Inspected:
    """What a checkpoint folder, a hub id, a GGUF file, an ONNX folder or a file of statistics is; reads headers only,
    and all of the last.
    """
    from sampan.validate.inspection import inspected

    data = inspected(os.fspath(path), revision)
    kind = next(k for k in ("statistics", "checkpoint", "gguf", "onnx") if k in data)
    return Inspected(kind, data["bytes"], tuple(data["tensors"]), data)
