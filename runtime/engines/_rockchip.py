"""Rockchip's NPUs as targets: folders that `sampan convert --target rk3588` or its like made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sampan import rknn
from sampan.errors import wrong
from sampan.static import LAYOUT, is_static, read_layout

from ..engine import Engine, EngineOptions
from ..machine import Machine
from ..target import Target
from .static import StaticEngine


def target(chip: str) -> Target:
    return Target(
        f"Rockchip NPU ({chip.upper()})", f"rknn-toolkit-lite2, for folders made with --target {chip}",
        partial(_found, chip), partial(_open, chip),
    )  # fmt: skip


def _found(chip: str, machine: Machine) -> list[str]:
    """The chip, as the device tree names it."""
    names = machine.text("/proc/device-tree/compatible").split("\0")
    return [name for name in names if name.startswith(f"rockchip,{chip}")]


def _open(chip: str, path: Path, options: EngineOptions) -> Engine:
    """The compiled graphs on the NPU; Rockchip's runtime itself leaves some operators to the processor."""
    if not is_static(path):
        raise wrong(path, f"a folder with {LAYOUT}", "none", f"convert it with --to onnx --target {chip}")
    made_for = read_layout(path).target
    if made_for != chip:
        raise wrong(path, f"graphs for {chip}", f"graphs for {made_for}", f"convert it with --target {chip}")
    version = rknn.check()
    load: Callable[[Path], rknn.Session] = partial(rknn.Session, chip=chip)
    return StaticEngine(path, options, load, f"{rknn.PACKAGE} {version}")
