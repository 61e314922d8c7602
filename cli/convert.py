"""sampan convert: a checkpoint becomes an artifact."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._out import block, line, show_json

if TYPE_CHECKING:
    from sampan.convert.conversion import Conversion
    from sampan.convert.plan import Plan


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to continue") from None


@click.command("convert", short_help="Convert a checkpoint to GGUF or ONNX at 4 or 8 bits.")
@click.argument("source")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The GGUF file or ONNX folder to write.")
@click.option("--to", default="gguf", show_default=True, help="Output format: gguf or onnx.")
@click.option(
    "--quant", default="int4", show_default=True, help="Scheme: int4, int8, native, or a name such as q4_k_m."
)
@click.option(
    "--plan", "plan_only", is_flag=True, help="Print what would be written; read headers only, write nothing."
)
@click.option("--jobs", type=click.IntRange(1, 1024), help="Worker threads.  [default: one for each core]")
@click.option("--max-memory", default="256M", show_default=True, help="Bound of the row buffers.")
@click.option("--split-size", help="Start a new file where one would pass this size, such as 2G.")
@click.option("--context", type=click.IntRange(1), help="Positions of an ONNX graph.  [default: up to 32768]")
@click.option(
    "--accuracy-level", type=click.Choice(["0", "4"]),
    help="Of an ONNX graph's products: 4 rounds activations to int8, which is fast, 0 does not.  [default: 4]",
)  # fmt: skip
@click.option(
    "--kv", type=click.Choice(["f32", "int8"]),
    help="Number type of an ONNX graph's cache: int8 is a quarter of the memory.  [default: f32]",
)  # fmt: skip
@click.option(
    "--target", help="An NPU to compile for, with --to onnx: qnn, or qnn-v73, -v75, -v79, -v81; rk3588 or rk3576."
)
@click.option("--make-rknn", is_flag=True, help="Make the environment of Rockchip's compiler with pip: about 2 GB.")
@click.option("--exporter", help="Another exporter for architectures that are not known here: optimum.")
@click.option("--make-exporter", is_flag=True, help="Make its environment with pip, if there is none: about 2 GB.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--stream", is_flag=True, help="Of a hub id, keep one shard at a time on the disk.")
@click.option("--allow-zero", is_flag=True, help="Convert matrices that hold nothing but zeros (for research).")
@click.option("--lossless", is_flag=True, help="Refuse to change any number; goes well with --quant native.")
@click.option(
    "--stats",
    type=click.Path(path_type=Path),
    help="Statistics of sampan calibrate or llama-imatrix: 4 bits get better.",
)
@click.option("--no-mtp", is_flag=True, help="Leave out the head that predicts a further token, which GGUF files keep.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option(
    "--validate", "check", is_flag=True, help="Measure the drift afterwards; the verdict goes into the manifest."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON.")
@_resumable()
def command(
    source: str, output: Path | None, to: str, quant: str, plan_only: bool, jobs: int | None, max_memory: str,
    split_size: str | None, context: int | None, accuracy_level: str | None, kv: str | None, target: str | None,
    make_rknn: bool, exporter: str | None, make_exporter: bool, revision: str | None, stream: bool, allow_zero: bool,
    lossless: bool, stats: Path | None, no_mtp: bool, overwrite: bool, check: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert SOURCE, a checkpoint folder or a hub id, in one pass.

    Nothing stands under the final name until it is complete; a killed run continues where it stopped when
    the same command is given again.

    \b
    Examples:
      sampan convert Qwen/Qwen3-0.6B --to gguf --quant int4 -o qwen.gguf
      sampan convert Qwen/Qwen3-0.6B --to onnx --quant int4 -o qwen-onnx
      sampan convert ./Qwen2.5-7B-Instruct --quant q8_0 --plan
      sampan convert ./Qwen2.5-0.5B --quant q4_0 -o qwen.gguf --validate
      sampan convert ./Mistral-7B --to onnx --exporter optimum -o mistral-onnx
      sampan convert ./Qwen3-30B-A3B --quant q4_k_m --split-size 4G -o qwen.gguf
      sampan convert moonshotai/Kimi-K2-Instruct --stream -o kimi.gguf
    """
    from sampan.artifact import manifest_path
    from sampan.convert.conversion import convert, prepare
    from sampan.convert.lossless import nearest
    from sampan.errors import wrong
    from sampan.files import read_json
    from sampan.hub import open_source
    from sampan.units import human, parse_size

    from . import _export
    from ._progress import Progress

    if output is None:
        if not plan_only:
            raise wrong("--output", "what to write", "none", "add -o model.gguf")
        output = Path(f"{Path(source).name}.{to}")
    memory = parse_size(max_memory, "--max-memory")
    split = parse_size(split_size, "--split-size") if split_size else None
    if stream and check:
        raise wrong("--validate", "a checkpoint that stays on the disk", "--stream", "validate the output by itself")
    if exporter:
        refused: dict[str, object] = {"--plan": plan_only, "--split-size": split_size, "--validate": check}
        refused |= {"--lossless": lossless, "--stream": stream, "--stats": stats, "--target": target, "--kv": kv}
        place = _export.environment(exporter, to, refused, make_exporter)
    if make_rknn:
        _export.make_rknn(target)
    checkpoint = open_source(source, revision, headers_only=plan_only, stream=stream)
    accuracy = None if accuracy_level is None else int(accuracy_level)
    if exporter:
        from sampan.convert.exported import Request

        wanted = Request(output, quant, jobs, memory, context, accuracy, allow_zero, overwrite)
        _export.run(checkpoint, place, wanted, as_json)
        return
    conversion = prepare(
        checkpoint, output, to, quant, jobs=jobs, max_memory=memory, split=split, context=context, accuracy=accuracy,
        kv=kv, lossless=lossless, stats=stats, target=target, mtp=not no_mtp,
    )  # fmt: skip
    if plan_only:
        show_json(_plan_data(conversion), indent=1) if as_json else block(_plan_text(conversion))
        return
    for note in conversion.notes:
        line(note, err=True)
    if conversion.work.compare:
        for (label, kind), tensors in nearest(conversion.plan).items():
            line(f"{len(tensors)} tensors stored as {label} become {kind}, the nearest here", err=True)
    with Progress(conversion.source_bytes, "converting") as progress:
        job = convert(conversion, allow_zero=allow_zero, overwrite=overwrite, progress=progress)
        seconds = progress.seconds
    if job.restarted:
        line(f"started again: {job.restarted}", err=True)
    if job.finished:
        line("an earlier run had written all of it; it has its name now", err=True)
    if job.untried:
        line(job.untried, err=True)
    if job.records:
        line("continued an unfinished output", err=True)
    if conversion.binding.redundant_head is not None:
        name = conversion.binding.redundant_head.name
        line(f"{name} is a copy of the tied embedding: written once", err=True)
    if conversion.work.compare:
        line(_compared(read_json(manifest_path(conversion.out))["lossless"]), err=True)
    plan = conversion.plan
    files, nbytes = [str(f.path) for f in job.files], sum(f.size for f in job.files)
    if as_json:
        data = {"files": files, "bytes": nbytes, "seconds": round(seconds, 3), "scheme": plan.scheme}
        show_json(data | {"bits_per_weight": round(plan.bits_per_weight, 4)})
    else:
        name = str(conversion.artifact) + (f" … ({len(files)} files)" if len(files) > 1 else "")
        line(f"{name}: {plan.scheme}, {human(nbytes)}, {plan.bits_per_weight:.2f} bits per weight, {seconds:.1f} s")
    if check:
        _validate(source, revision, conversion)


def _compared(result: dict[str, Any]) -> str:
    """What the comparison of every value found, in a line."""
    changed = result["changed"]
    if not changed:
        return f"every value of all {result['exact']} tensors is the checkpoint's"
    worst = max(changed, key=lambda name: float(changed[name]["relative"]))
    return (
        f"{result['exact']} tensors are the checkpoint's in every value, {len(changed)} are not: "
        f"relative error up to {changed[worst]['relative']:.3g} ({worst}); all are in the manifest"
    )


def _validate(source: str, revision: str | None, conversion: Conversion) -> None:
    """Measure the drift with the default text and limits; exits with 1 unless passed."""
    from sampan.artifact import manifest_path
    from sampan.validate.text import text_report
    from sampan.validate.validation import Options, record, validate

    from ._progress import Progress

    options = Options(revision=revision, stats=conversion.stats.path if conversion.stats else None)
    report = validate(source, [conversion.artifact], options, Progress)
    record(report, manifest_path(conversion.out))
    block(f"\n{text_report(report)}", err=True)
    if report["verdict"] != "passed":
        sys.exit(1)


def _plan_data(c: Conversion) -> dict[str, Any]:
    from sampan.convert.lossless import sources

    plan = c.plan
    return {
        "source": c.checkpoint.source,
        "revision": c.checkpoint.revision,
        "family": plan.arch.family,
        "scheme": plan.scheme,
        "bytes": plan.nbytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "row_buffers": c.work.buffers(c.jobs),
        "peak_memory": c.peak_memory,
        "disk": plan.nbytes + plan.later,
        "notes": c.notes,
        "stored": sources(plan.tensors),
        "files": [{"path": str(f.path), "bytes": f.size} for f in plan.files],
        "tensors": [
            {"name": t.bound.spec.name, "shape": list(t.bound.spec.shape), "stored": " + ".join(sources([t])),
             "type": t.type.name, "bytes": t.nbytes,
             "file": t.file, "offsets": list(t.offsets)}
            for t in plan.tensors
        ],
    }  # fmt: skip


def _peak(c: Conversion) -> str:
    from sampan.units import human

    buffers = c.work.buffers(c.jobs)
    if c.plan.memory > buffers:
        return f"of it {human(c.plan.memory)} when the weights are written"
    return f"of it {human(buffers)} row buffers"


def _later(plan: Plan) -> str:
    from sampan.units import human

    return f"about {human(plan.later)} that is made of it" if plan.later else "nothing beside it"


def _plan_text(c: Conversion) -> str:
    from sampan.convert.lossless import nearest, sources
    from sampan.table import table
    from sampan.units import human

    plan = c.plan
    rows: list[list[object]] = [["tensor", "shape", "stored as", "type", "bytes", "bits"]]
    for t in plan.tensors:
        shape = " × ".join(map(str, t.bound.spec.shape))
        stored = " + ".join(sources([t]))
        rows.append([t.bound.spec.name, shape, stored, t.type.name, t.nbytes, f"{t.type.bits:.2f}"])
    totals = [
        ["output", f"{plan.nbytes} bytes ({human(plan.nbytes)}) in {len(plan.files)} file(s)"],
        ["bits per weight", f"{plan.bits_per_weight:.3f} ({plan.scheme})"],
        ["peak memory", f"about {human(c.peak_memory)}, {_peak(c)}"],
        ["disk", f"{human(plan.nbytes)} for the output, {_later(plan)}"],
        *(["note", note] for note in c.notes),
    ]
    if c.work.compare:
        changes = [f"{len(v)} tensors {a} → {b}" for (a, b), v in nearest(plan).items()]
        totals.append(["not exact", ", ".join(changes) or "nothing, but for scales that float16 does not hold"])
    return f"{table(rows, right='bef')}\n\n{table(totals)}"
