"""sampan plan: what a model would do on a device, before anything is converted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import _options
from ._out import block, show_json

if TYPE_CHECKING:
    from sampan.runtime.device import Device
    from sampan.runtime.predict import Row, Speed

    _Found = tuple[str, int, list[Row], Row | None, str]


@click.command("plan", short_help="Tell whether a model fits a device, and how fast it may be.")
@click.argument("source", required=False)
@click.option("--device", "name", help="Such as pi5, 8-elite, rk3588.  [default: this machine]")
@_options.context
@click.option("--memory", help="Of the device, where it is sold with several, such as 16G.")
@click.option("--quant", multiple=True, help="A scheme, or all; can be repeated.  [default: int4 and int8]")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--devices", "listed", is_flag=True, help="List the devices.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    source: str | None, name: str | None, context: int | None, memory: str | None, quant: tuple[str, ...],
    revision: str | None, listed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Predict what SOURCE, a checkpoint folder, a hub id or a GGUF file, would do on a device: which formats and
    schemes fit, and tokens a second as a range. Reads headers only and writes nothing; exits with 1 where nothing is
    sure to fit.

    No number of a device was measured there by us: each comes with its reason, and what is unproved is said.

    \b
    Examples:
      sampan plan Qwen/Qwen3-0.6B --device pi5
      sampan plan ./Qwen3-8B --device 8-gen3 --context 8192 --memory 16G
      sampan plan ./Qwen3-8B --quant int4 --quant int8
      sampan plan --devices
    """
    from sampan.errors import wrong
    from sampan.model import names_model
    from sampan.runtime import device as devices
    from sampan.static import is_static

    if listed or name == "list":
        all_of_them = [devices.read(n) for n in devices.names()]
        show_json([_device(d) for d in all_of_them], indent=1) if as_json else block(_listed(all_of_them))
        return
    if source is None:
        raise wrong("SOURCE", "a checkpoint folder, a hub id or a GGUF file", "none", "or --devices")
    path = Path(source)
    if is_static(path) or path.suffix == ".onnx" or (path.is_dir() and names_model(source)):
        hint = "give the checkpoint that it was made of, or a GGUF file itself"
        raise wrong(source, "a checkpoint folder, a hub id or a GGUF file", "another model that runs", hint)
    device = _with(devices.here() if name is None else devices.find(name), memory)
    if path.is_file():
        model, context, rows, best, why = _file(path, device, context, revision, quant)
    else:
        model, context, rows, best, why = _checkpoint(source, device, context, revision, quant)
    data = {
        "source": source, "revision": revision, "model": model, "context": context, "device": _device(device),
        "rows": [_row(r) for r in rows],
        "recommended": best and {"format": best.format, "target": best.target, "scheme": best.scheme},
        "why": why, "unproved": unproved(device, rows),
    }  # fmt: skip
    if as_json:
        show_json(data, indent=1)
    else:
        block(_page(device, f"{model}, {context} tokens of context", rows, best, why))
    if best is None:
        sys.exit(1)


def _checkpoint(source: str, device: Device, context: int | None, revision: str | None, quant: Sequence[str]) -> _Found:
    """What it is, its context, what could be made of it, and what to take with the reason."""
    from sampan.convert.demand import ALL, PORTABLE, choices
    from sampan.convert.family import read_architecture
    from sampan.errors import wrong
    from sampan.hub import open_source
    from sampan.runtime.engine import DEFAULT_CONTEXT
    from sampan.runtime.predict import Row, predict, recommend

    checkpoint = open_source(source, revision, headers_only=True)
    arch = read_architecture(checkpoint)[1]
    context = context or min(arch.context, DEFAULT_CONTEXT)
    if context > arch.longest:
        raise wrong("--context", f"at most the {arch.longest} that the model was made for", context)
    targets = [device.npu.target] if device.npu and device.npu.target else []
    rows: list[Row] = []
    for wanted in (quant or PORTABLE, (ALL,)):
        known = {(r.format, r.target, r.scheme) for r in rows}
        for c in choices(checkpoint, context, targets, wanted, known):
            found = None if c.demand is None else predict(device, c.demand, context)
            rows.append(Row(c.format, c.target, c.scheme, c.demand, found, c.refused))
        best, why = recommend(rows, context)
        least = min((r.prediction.memory for r in rows if r.prediction), default=0)
        # where nothing of the usual fits, smaller ones are looked at, if one of half the size would
        if quant or best or (device.room and least > 2 * device.room):
            break
    return f"{source}: {arch.family}", context, rows, best, why


def _file(path: Path, device: Device, context: int | None, revision: str | None, quant: Sequence[str]) -> _Found:
    """The same of a GGUF file, which is what it is."""
    from sampan.errors import wrong
    from sampan.runtime.engine import DEFAULT_CONTEXT
    from sampan.runtime.memory import asks
    from sampan.runtime.predict import Row, predict

    for option, value in (("--revision", revision), ("--quant", ", ".join(quant))):
        if value:
            raise wrong(option, "none with a GGUF file", value)
    demand, trained, longest = asks(path)
    context = context or min(trained, DEFAULT_CONTEXT)
    if context > longest:
        raise wrong("--context", f"at most the {longest} that the model was made for", context)
    found = predict(device, demand, context)
    row = Row("gguf", None, "as it is", demand, found)
    fits = found.fits == "yes"
    return path.name, context, [row], row if fits else None, "it fits" if fits else f"it needs {found.reason}"


def _with(device: Device, memory: str | None) -> Device:
    """With another size of memory."""
    from dataclasses import replace

    from sampan.runtime.device import Number
    from sampan.units import parse_size

    if memory is None:
        return device
    return replace(device, memory=Number(float(parse_size(memory, "--memory")), "--memory"))


def unproved(device: Device, rows: Sequence[Row]) -> list[str]:
    """What nobody showed, a line each."""
    from sampan.runtime import predict

    found = ["every speed here is reckoned: none was measured on this device" + (" yet" if device.measured else "")]
    numbers = {"memory": device.memory, "what a model may take": device.usable, "bandwidth": device.bandwidth}
    found += [f"{what}: not known: {n.source}" for what, n in numbers.items() if n.value is None]
    found += [f"the 8-bit operations of {c.name}: {c.source}" for c in device.computing if c.operations is None]
    if device.npu is not None and device.npu.target is None:
        found.append(f"{device.npu.name}: sampan has no target for it")
    if any(r.demand is not None and r.demand.parts for r in rows):
        found.append("whether the NPU's driver takes these graphs, and what it reaches with them: docs/npu.md")
    share = predict.DECODE_HERE if device.measured else predict.DECODE
    found.append(f"that decoding reaches {share.low:g} to {share.high:g} of the bandwidth: {share.why}")
    return [*found, *device.notes]


def _device(device: Device) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(device) | {"room": device.room, "operations": device.peak}


def _row(row: Row) -> dict[str, Any]:
    from dataclasses import asdict

    found: dict[str, Any] = {"format": row.format, "target": row.target, "scheme": row.scheme}
    found["refused"] = row.refused or None
    if row.demand is not None and row.prediction is not None:
        found |= {"demand": asdict(row.demand), **asdict(row.prediction)}
    return found


def _page(device: Device, model: str, rows: Sequence[Row], best: Row | None, why: str) -> str:
    from sampan.table import table
    from sampan.units import human

    cells: list[list[object]] = [["", "format", "scheme", "bits", "fits", "file", "memory", "decode", "prefill"]]
    refused: dict[str, list[str]] = {}
    for r in sorted(rows, key=lambda r: (r.format, r.target or "", r.demand.files if r.demand else 0)):
        name = f"{r.format} {r.target}" if r.target else r.format
        if r.demand is None or r.prediction is None:
            refused.setdefault(r.refused, []).append(f"{name} {r.scheme}".strip())
            continue
        p = r.prediction
        cells.append([
            "→" if r is best else "", name, r.scheme, f"{r.demand.bits:.2f}", p.fits, human(r.demand.files),
            human(p.memory), *("" if p.fits == "no" else _range(s) for s in (p.decode, p.prefill)),
        ])  # fmt: skip
    head: list[list[object]] = [["model", model]]
    head += [[name, text] for name, text in _said(device)]
    told: list[list[object]] = [["take", f"{best.format} {best.scheme}: {why}" if best else f"nothing: {why}"]]
    on_npu = next((r for r in rows if r.demand is not None and r.demand.parts), None)
    for what, row in (("", best), ("NPU ", on_npu)):
        if row is not None and (x := row.prediction) is not None:
            told += [[f"{what}memory", x.reason], [f"{what}decode", x.decode.why], [f"{what}prefill", x.prefill.why]]
    told += [["refused", f"{', '.join(names)}: {reason}"] for reason, names in refused.items()]
    told += [["unproved", text] for text in unproved(device, rows)]
    parts = [table(head)]
    if len(cells) > 1:
        parts.append(table(cells, right="dfghi") + "\n(decode and prefill in tokens/s)")
    return "\n\n".join([*parts, table(told)])


def _range(speed: Speed) -> str:
    if speed.low is None or speed.high is None:
        return "unknown"
    return " – ".join(f"{v:.0f}" if v >= 100 else f"{v:.3g}" for v in (speed.low, speed.high))


def _said(device: Device) -> list[tuple[str, str]]:
    """What a device is, in lines."""
    from sampan.units import human

    def size(value: float | None) -> str:
        return "not known" if value is None else human(value)

    rate = device.bandwidth.value
    lines = [
        ("device", device.name),
        ("memory", f"{size(device.memory.value)}, of it {size(device.room)} for a model"),
        ("bandwidth", f"{'not known' if rate is None else f'{rate / 1e9:.1f} GB/s'}: {device.bandwidth.source}"),
    ]
    if device.cores:
        lines.append(("cores", " + ".join(f"{c.count} × {c.name} {c.gigahertz:g} GHz" for c in device.computing)))
    if device.npu is not None:
        lines.append(("NPU", device.npu.name + (f", --target {device.npu.target}" if device.npu.target else "")))
    return lines


def _listed(devices: Sequence[Device]) -> str:
    from sampan.table import table
    from sampan.units import human

    rows: list[list[object]] = [["device", "what it is", "memory", "GB/s", "NPU", "also called"]]
    for d in devices:
        rate, size = d.bandwidth.value, d.memory.value
        rows.append([
            d.id, d.name, human(size) if size else "", f"{rate / 1e9:.1f}" if rate else "not known",
            (d.npu.target or f"{d.npu.name}: no target") if d.npu else "", ", ".join(d.aliases),
        ])  # fmt: skip
    return table(rows, right="cd")
