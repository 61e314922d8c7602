"""sampan bench: prompt and decode speed, time to the first token, load time, memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import _options
from ._out import block, line, said, show_json
from ._progress import Progress

if TYPE_CHECKING:
    from sampan.runtime.bench import Ratio
    from sampan.runtime.engine import KV

UNITS = {"tokens/s": ("tokens/s", 1.0), "s": ("ms", 1e-3), "bytes": ("MB", 1e6)}  # as they are shown


@click.command("bench", short_help="Measure speed and memory of a model here.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", type=int, multiple=True, default=(512,), show_default=True,
              help="Length of a prompt, in tokens; 0: none. Can be repeated.")  # fmt: skip
@click.option("--decode", type=int, default=128, show_default=True, help="Tokens that are decoded; 0: none.")
@click.option("--depth", "depths", type=int, multiple=True, default=(0,), show_default=True,
              help="Decode behind so many tokens. Can be repeated.")  # fmt: skip
@click.option("--repetitions", type=int, default=5, show_default=True, help="Of each measurement.")
@_options.threads
@_options.kv
@_options.target
@click.option("--compare", type=click.Path(path_type=Path), metavar="FILE", help="Beside an earlier --json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path, prompts: tuple[int, ...], decode: int, depths: tuple[int, ...], repetitions: int, threads: int | None,
    kv: KV | None, target: str, compare: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure MODEL, a GGUF file or an ONNX folder: medians of repetitions, with the least and the greatest.

    pp512 and tg128 are what llama-bench calls so: tokens per second of a prompt, and of tokens one by one, in the
    engine alone. ttft512 is the time from such a prompt to the first token of an answer. Peak RSS is of a process of
    its own, with all that it maps.

    \b
    Examples:
      sampan bench qwen.gguf
      sampan bench qwen.gguf --prompt 128 --prompt 2048 --depth 0 --depth 4096
      sampan bench qwen.gguf --json > before.json
      sampan bench qwen.gguf --compare before.json
    """
    from sampan.errors import wrong
    from sampan.model import find_model
    from sampan.runtime import bench

    model = find_model(model, say=said)
    if not model.exists():
        raise wrong(model, "an artifact", "no such file")
    old = None if compare is None else bench.earlier(compare, bench.identity(model))
    lengths, behind = tuple(dict.fromkeys(n for n in prompts if n)), tuple(dict.fromkeys(depths))
    plan = bench.Plan(lengths, decode, behind, repetitions, threads, kv, target)
    with Progress(plan.runs, model.name, "run") as bar:
        result = bench.bench(model, plan, bar)
    busy, cores = result["load_average"], result["machine"]["cores"]
    if busy is not None and busy > cores / 4:
        line(f"other programs used this machine: a load of {busy} on {cores} cores; trust ratios of one run", err=True)
    ratios: list[Ratio] = []
    if old is not None:
        ratios, differs = bench.compare(old, result)
        for difference in differs:
            line(f"{compare}: {difference}", err=True)
    if as_json:
        told = [{"test": r.test, "ratio": r.ratio, "apart": r.apart} for r in ratios]
        show_json(result | ({"compared": told} if compare is not None else {}), indent=1)
        return
    block(_table(result, ratios, compare))


def _table(result: dict[str, Any], ratios: list[Ratio], compare: Path | None) -> str:
    from sampan.table import table
    from sampan.units import human

    model, beside = result["model"], {r.test: r for r in ratios}
    n = result["threads"]
    threads = f"{n} thread{'s' if n > 1 else ''}, " if n else ""
    title = f"{model['name']}: {human(model['bytes'])}, {result['engine']}, {threads}{result['kv']} cache"
    rows: list[list[object]] = [["test", "median", "", "least", "greatest"]]
    if compare is not None:
        rows[0] += ["then", "now / then", ""]
    for row in result["rows"]:
        unit, scale = UNITS[row["unit"]]
        cells = [f"{row[k] / scale:.1f}" for k in ("median", "min", "max")]
        rows.append([row["test"], cells[0], unit, *(cells[1:] if len(row["samples"]) > 1 else ["", ""])])
        if compare is not None:
            if old := beside.get(row["test"]):
                overlap = "" if old.apart else "the spreads overlap"
                rows[-1] += [f"{old.before / scale:.1f}", f"{old.ratio:.2f}", overlap]
            else:
                rows[-1] += ["", "", "not there"]
    return f"{title}\n{table(rows, right='bdefg')}"
