"""sampan doctor: what this machine is, what runs on it, and what to install for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._out import block, said, show_json


@click.command("doctor", short_help="Show what this machine is and what runs on it.")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: Path | None, as_json: bool) -> None:
    """Show processor, memory, engines and NPUs, what to install, and what would be faster.

    With MODEL, a GGUF file, also whether it fits into the memory.

    \b
    Examples:
      sampan doctor
      sampan doctor qwen.gguf
    """
    from sampan.model import find_model
    from sampan.runtime import doctor, machine

    path = None if model is None else find_model(model, say=said)
    found = doctor.examine(machine.look(), doctor.probe(), path)
    if as_json:
        show_json(found, indent=1)
    else:
        block(_page(found))


def _page(found: dict[str, Any]) -> str:
    from sampan.table import table

    rows: list[list[object]] = [["machine", _machine(found)]]
    rows += [["cores" if n == 0 else "", line] for n, line in enumerate(_cores(found["processor"]))]
    rows.append(["features", " ".join(found["processor"]["features"]) or "none that is known"])
    rows.append(["memory", _memory(found["memory"])])
    rows += [["engine", f"{e.get('name', name)}: {_engine(e)}"] for name, e in found["engines"].items()]
    for npu in found["npus"]:
        rows += [["NPU", npu["summary"]], ["NPU needs", "; ".join(npu["needs"])]]
    rows += [] if found["npus"] else [["NPU", "none found"]]
    rows += [
        [f"target {n}", "; ".join(t["found"]) or f"not found here ({t['summary']})"]
        for n, t in found["targets"].items()
    ]
    for extra, told in found["extras"].items():
        packages = ", ".join(f"{p} {v}" if v else f"{p} missing" for p, v in told["packages"].items())
        rows.append([f"extra {extra}", packages + (f": {told['install']}" if told["install"] else "")])
    rows += [["room", line] for line in _room(found)]
    rows += [["faster", line] for line in found["advice"]]
    return table(rows)


def _machine(found: dict[str, Any]) -> str:
    cpu = found["processor"]
    parts = [found["device"], cpu["name"], cpu["architecture"], found["system"], f"Python {found['python']}"]
    return ", ".join(str(p) for p in [*parts, f"sampan {found['sampan']}"] if p)


def _cores(cpu: dict[str, Any]) -> list[str]:
    lines = []
    for kind in cpu["cores"]:
        numbers = ", ".join(map(str, kind["numbers"]))
        idle = "" if kind["computes"] else ": slower, not counted"
        lines.append(f"{len(kind['numbers'])} × {kind['name'] or 'core'} ({numbers}){idle}")
    quota = "" if cpu["quota"] is None else f", of {cpu['quota']:g} cores' time"
    compute = "1 thread computes" if cpu["threads"] == 1 else f"{cpu['threads']} threads compute"
    return [*lines, compute + quota]


def _memory(memory: dict[str, Any]) -> str:
    from sampan.units import human

    names = {"total": "in all", "available": "available", "limit": "limit of the control group", "swap": "swap"}
    return ", ".join(f"{human(memory[k])} {name}" for k, name in names.items() if memory[k]) or "not told"


def _engine(engine: dict[str, Any]) -> str:
    if "error" in engine:
        return str(engine["error"]) + (f"; {engine['install']}" if "install" in engine else "")
    more = [f"{k.replace('_', ' ')} {', '.join(v)}" for k, v in engine.items() if isinstance(v, list)]
    return "; ".join([str(engine["version"]), *more])


def _room(found: dict[str, Any]) -> list[str]:
    from sampan.units import human

    lines = []
    if (room := found["room"]) is not None:
        size = f"about {room['billions_at_int4']} billion weights at int4"
        fits = f"GGUF files up to {human(room['weights'])} at a context of 4096 tokens, {size}"
        lines.append(fits if room["weights"] else "too little memory is available for a model and its cache")
    if (model := found["model"]) is not None:
        parts = ", ".join(f"{k} {human(model[k])}" for k in ("weights", "cache", "margin"))
        verdict = {True: "fits", False: "does NOT fit", None: "may fit: nothing tells of the memory"}[model["fits"]]
        lines.append(f"this model needs {human(model['total'])} ({parts}) at {model['context']} tokens: it {verdict}")
    return lines
