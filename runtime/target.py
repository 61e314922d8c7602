"""What a target is: the part of a machine that computes, and how an artifact is opened on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sampan.errors import wrong
from sampan.registry import load

from .engine import Engine, EngineOptions
from .machine import Machine

DEFAULT = "cpu"
MOST_THREADS = 512  # ggml's own limit; beyond what an integer of theirs holds both libraries end the process


@dataclass(frozen=True, slots=True)
class Target:
    """A file in `runtime/targets` exports one as TARGET; the file's name is what the user types.

    `name` is what people call it, `summary` one line about it. `found` tells what of it is on a machine, a line for
    each thing, none where it is not there; it asks the machine's files only (`Machine.text`, `Machine.paths`) and never
    raises. `open` loads an artifact as an engine does: InputError where it cannot, in one line that says what to do.
    """

    name: str
    summary: str
    found: Callable[[Machine], list[str]]
    open: Callable[[Path, EngineOptions], Engine]


def open_engine(path: Path, options: EngineOptions, target: str) -> Engine:
    """Open an artifact on a target by its file's name; InputError where there is no such target or artifact."""
    if not path.exists():
        raise wrong(path, "an artifact", "no such file")
    if options.threads is not None and not 0 < options.threads <= MOST_THREADS:
        raise wrong("threads", f"1 to {MOST_THREADS}", options.threads)
    chosen: Target = load("sampan.runtime.targets", target, "TARGET", "target")
    return chosen.open(path, options)
