"""Compile graphs for an NPU, each in a process of its own: a compiler may end the process that it runs in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sampan.child import ended, start
from sampan.errors import InputError, UnfinishedError, brief, wrong
from sampan.qnn import COMPILE
from sampan.units import human

SPARE = 0.25  # that a compiled part may be larger than its weights, with what belongs to its operators
FIXED = 64_000_000  # bytes of the same that any part may have
MEMORY, MEMORY_FIXED = 14, 500_000_000  # bytes of the compiler's process for each byte of a part, by what was measured


def needs(nbytes: int) -> int:
    """About how many bytes of memory the compiler takes for a part of `nbytes` of weights."""
    return MEMORY * nbytes + MEMORY_FIXED


def compiled(
    folder: Path, graphs: Sequence[str], versions: Sequence[str], limit: int
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Bytes of every compiled part by HTP version and graph; names of all files that were made."""
    sizes: dict[str, dict[str, int]] = {}
    names: list[str] = []
    for version in versions:
        sizes[version] = {}
        for graph in graphs:
            out = folder / f"{graph.removesuffix('.onnx')}.v{version}.onnx"
            for old in folder.glob(f"{out.stem}*"):
                old.unlink()
            files = [out.name, *_compile(folder / graph, out, version)]
            nbytes = sum((folder / f).stat().st_size for f in files)
            if nbytes > limit * (1 + SPARE) + FIXED:
                raise wrong(out.name, f"a part of about {human(limit)}", human(nbytes), "give a smaller --split-size")
            sizes[version][graph] = nbytes
            names += files
    return sizes, names


def _compile(graph: Path, out: Path, version: str) -> list[str]:
    """The files that the compiled graph loads."""
    with tempfile.TemporaryFile() as errors, start(COMPILE, str(graph), str(out), version, stderr=errors) as process:
        said, _ = process.communicate()
        errors.seek(0)
        last = errors.read().decode(errors="replace")
    try:
        answer = json.loads(said)
    except ValueError:
        what = f"{graph.name}: QNN's compiler {ended(process.returncode, last)}"
        if process.returncode < 0:
            raise UnfinishedError(f"{what}; what was converted is kept, and the same command tries again") from None
        raise InputError(what) from None
    if "refused" in answer:
        raise InputError(brief(answer["refused"], 600))
    files: list[str] = json.loads(answer["files"])
    return files
