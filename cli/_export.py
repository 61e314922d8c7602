"""The part of `sampan convert` that goes through another exporter."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ._out import line, show_json

if TYPE_CHECKING:
    from sampan.checkpoint import Checkpoint
    from sampan.convert.exported import Request


def environment(exporter: str, to: str, refused: dict[str, object], make_it: bool) -> Path:
    """The exporter's environment, made where that is asked for. `refused`: options that mean nothing with it."""
    from sampan.convert import environments
    from sampan.convert.exporters.optimum import ENVIRONMENT
    from sampan.errors import wrong

    if exporter != "optimum":
        raise wrong("--exporter", "optimum", repr(exporter))
    if to != "onnx":
        raise wrong("--to", "onnx with --exporter", to)
    option = next((name for name, value in refused.items() if value), None)
    if option:
        raise wrong(option, "none with --exporter", refused[option])
    return (environments.make if make_it else environments.find)(ENVIRONMENT, ENVIRONMENT.place)


def make_rknn(target: str | None) -> None:
    """The environment of Rockchip's compiler."""
    from sampan.convert import environments
    from sampan.convert.formats.onnx.rockchip import ENVIRONMENT
    from sampan.errors import wrong
    from sampan.rknn import CHIPS

    if target not in CHIPS:
        raise wrong("--make-rknn", f"--target {' or '.join(CHIPS)} beside it", target or "no target")
    environments.make(ENVIRONMENT, ENVIRONMENT.place)


def run(checkpoint: Checkpoint, place: Path, request: Request, as_json: bool) -> None:
    """Convert, and say what was written."""
    from sampan.convert.exported import convert_exported
    from sampan.convert.family import find_family
    from sampan.errors import InputError
    from sampan.units import human

    from ._progress import Progress

    with contextlib.suppress(InputError):
        line(f"{find_family(checkpoint)[0]} needs no --exporter: without it, it is faster", err=True)
    start = time.monotonic()
    line("exporting and comparing with transformers", err=True)
    convert_exported(checkpoint, place, request, lambda total: Progress(total, "quantising"))
    seconds = time.monotonic() - start
    manifest = json.loads((request.out / "manifest.json").read_text())
    nbytes = sum(manifest["files"].values())
    if as_json:
        keys = ("scheme", "bits_per_weight", "export")
        files = [str(request.out / n) for n in manifest["files"]]
        data = {"files": files, "bytes": nbytes, "seconds": round(seconds, 3)}
        show_json(data | {k: manifest[k] for k in keys})
        return
    error, bound = (manifest["export"][k] for k in ("largest_error", "largest_allowed"))
    line(f"the exported graph is within {error:.1e} of transformers' logits ({bound:.1e} allowed)", err=True)
    size = f"{human(nbytes)}, {manifest['bits_per_weight']:.2f} bits per weight"
    line(f"{request.out}: {manifest['scheme']}, {size}, {seconds:.1f} s")
