"""Qualcomm's NPU: folders that `sampan convert --target qnn` made; on x86-64 the emulator of Qualcomm's SDK."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from sampan import qnn
from sampan.errors import InputError, wrong
from sampan.files import size_of
from sampan.static import LAYOUT, compiled, compiled_for, is_static, read_layout

from ..engine import Engine, EngineOptions
from ..engines.static import StaticEngine
from ..machine import Machine
from ..target import Target


def _found(machine: Machine) -> list[str]:
    """The ways to the DSP that a kernel of Qualcomm's offers."""
    return machine.paths("/dev/fastrpc-cdsp*")


def _open(path: Path, options: EngineOptions) -> Engine:
    """The compiled graphs. Nothing is left to the processor, and nothing is compiled here."""
    if not is_static(path):
        raise wrong(path, f"a folder with {LAYOUT}", "none", "convert it with --to onnx --target qnn")
    version, package = _version(path), qnn.check()

    def load(graph: Path) -> Any:
        made = graph.with_name(compiled(graph.name, version))
        for name in qnn.contexts(made):
            size_of(made.with_name(name))
        return qnn.session(made, version)

    where = " in the emulator" if _emulated() else ""
    return StaticEngine(path, options, load, f"{qnn.PACKAGE} {package}, HTP v{version}{where}")


def _emulated() -> bool:
    return platform.machine() == "x86_64"


def _version(path: Path) -> str:
    """The HTP version to open: the only one there, or in the emulator, which has all of them, the first."""
    versions = compiled_for(path, read_layout(path))
    if not versions:
        raise InputError(f"{path}: it holds no compiled graphs; convert it again with --target qnn")
    if len(versions) > 1 and not _emulated():
        names = ", ".join(f"v{v}" for v in versions)
        raise wrong(path, "graphs for this chip alone", names, "convert it with --target qnn-v75 or its like")
    return versions[0]


TARGET = Target("Qualcomm NPU", "ONNX Runtime's QNN provider, for folders made with --target qnn", _found, _open)
