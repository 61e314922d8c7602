"""sampan validate: is it still the same model?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from . import _options
from ._out import block, said, show_json, write


@click.command("validate", short_help="Measure the drift of an artifact from its reference, with a verdict.")
@click.argument("reference")
@click.argument("candidates", nargs=-1, required=True, metavar="CANDIDATE [CANDIDATE2]")
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Your own text instead of the built-in set; may be repeated.",
)
@click.option(
    "--windows", type=click.IntRange(1), help="Windows of 256 tokens a domain.  [default: 32; 8 with --target]"
)
@click.option("--long", is_flag=True, help="Add a document of 8k tokens in each language.")
@click.option(
    "--kv",
    type=click.Choice(["f32", "f16", "q8_0"]),
    help="Number type of the candidate's KV cache.  [default: the engine's own]",
)
@click.option(
    "--weights-only", is_flag=True, help="Judge the dequantised weights in float32, without the engine's own error."
)
@click.option("--parts", is_flag=True, help="Print the drift of the weights and of the engine too.")
@click.option(
    "--reference",
    "engine",
    type=click.Choice(["engine", "torch"]),
    default="engine",
    show_default=True,
    help="What runs the reference; torch is transformers in float32.",
)
@click.option("--target", default="cpu", show_default=True, help="What runs CANDIDATE: cpu, or an NPU such as qnn.")
@click.option("--blame", is_flag=True, help="Rank kinds of tensors and layers by their share of the drift.")
@click.option("--max-kld", multiple=True, metavar="X", help="Largest KL divergence; X, DOMAIN=X or each=X.")
@click.option("--min-top1", multiple=True, metavar="X", help="Smallest share of equal first tokens.")
@click.option("--max-ppl-ratio", multiple=True, metavar="X", help="Largest ratio of the perplexities.")
@click.option(
    "--stats", type=click.Path(path_type=Path), help="Statistics that the candidate was made with, to judge its rows."
)
@click.option("--strict", is_flag=True, help="Fail for known limits of the engine too.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--threads", type=_options.THREADS, help="Threads of the engines.  [default: one for each fast core]")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the report as JSON (- for standard output).",
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write the report as one HTML page.")
def command(
    reference: str, candidates: tuple[str, ...], texts: tuple[Path, ...], windows: int | None, long: bool,
    kv: str | None, weights_only: bool, parts: bool, engine: str, target: str, blame: bool, max_kld: tuple[str, ...],
    min_top1: tuple[str, ...], max_ppl_ratio: tuple[str, ...], stats: Path | None, strict: bool, revision: str | None,
    threads: int | None, json_file: Path | None, html_file: Path | None,
) -> None:  # fmt: skip
    """Compare CANDIDATE, a GGUF file or an ONNX folder, with REFERENCE: a checkpoint (folder or hub id) or another
    artifact.

    Exits with 0 when every limit is kept, with 1 when one is not or the text does not decide it. A limit
    without a domain is for the mean of the domains.

    \b
    Examples:
      sampan validate Qwen/Qwen3-0.6B qwen.gguf
      sampan validate ./Qwen3-0.6B q4_0.gguf q4_k_m.gguf --html report.html
      sampan validate ./Qwen3-0.6B qwen.gguf qwen-onnx
      sampan validate ./Qwen3-0.6B qwen.gguf --max-kld 0.05 --max-kld code=0.08 --min-top1 0.9
    """
    from sampan.errors import wrong
    from sampan.model import find_model
    from sampan.printable import printable_json
    from sampan.validate import verdict
    from sampan.validate.text import text_report
    from sampan.validate.validation import Options, validate

    from ._progress import Progress

    if len(candidates) > 2:
        raise wrong("CANDIDATE", "one or two", len(candidates))
    for option, file in (("--json", json_file), ("--html", html_file)):
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise wrong(option, "a file name in a folder that exists", file)
    given = {
        "kld": ("--max-kld", max_kld),
        "top1": ("--min-top1", min_top1),
        "ppl_ratio": ("--max-ppl-ratio", max_ppl_ratio),
    }
    limits = tuple(verdict.parse_limit(m, option, text) for m, (option, values) in given.items() for text in values)
    options = Options(
        texts=texts, windows=windows, long=long, kv=kv, weights_only=weights_only, parts=parts,
        torch=engine == "torch", threads=threads, revision=revision, limits=limits, blame=blame,
        strict=strict, stats=stats, target=target,
    )  # fmt: skip
    report = validate(reference, [find_model(c, say=said) for c in candidates], options, Progress)
    if str(json_file) == "-":
        show_json(report, indent=1)
    elif json_file is not None:
        write(json_file, printable_json(json.dumps(report, indent=1, ensure_ascii=False)) + "\n")
    if html_file is not None:
        from sampan.validate.html import html_report

        write(html_file, html_report(report))
    if json_file is None or str(json_file) != "-":
        block(text_report(report))
    sys.exit(0 if report["verdict"] == "passed" else 1)
