"""sampan calibrate: what the matrices of a model are multiplied with, for sampan convert --stats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from . import _options
from ._out import line

NAMED = 8  # experts in a line


@click.command("calibrate", short_help="Collect statistics that make 4 bits better.")
@click.argument("source")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path),
    help="NAME.safetensors, or NAME.gguf as llama.cpp's imatrix.",
)  # fmt: skip
@click.option(
    "--text", "texts", multiple=True, type=click.Path(path_type=Path),
    help="Your own text instead of the built-in one; may be repeated.",
)  # fmt: skip
@click.option("--threads", type=_options.THREADS, help="Threads of the engine.  [default: one for each core]")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def command(
    source: str, output: Path, texts: tuple[Path, ...], threads: int | None, revision: str | None, overwrite: bool
) -> None:
    """Run SOURCE, a checkpoint (folder or hub id) or a GGUF file, once over a text, and write the mean square of every
    input of every matrix.

    \b
    Examples:
      sampan calibrate Qwen/Qwen3-0.6B -o stats.safetensors
      sampan convert Qwen/Qwen3-0.6B --quant int4 --stats stats.safetensors -o qwen.gguf
      sampan calibrate ./Qwen3-0.6B -o qwen.imatrix.gguf --text mine.txt
    """
    from sampan.calibrate.calibration import RARE, calibrate

    from ._progress import Progress

    found = calibrate(
        source, output, Progress, texts=texts, revision=revision, threads=threads, overwrite=overwrite
    )  # fmt: skip
    if found.unseen:
        line(f"no token went to {_experts(found.unseen, found.experts)}: their columns all count the same", err=True)
    if found.rare:
        line(f"fewer than {RARE} tokens went to {_experts(found.rare, found.experts)}: a longer --text", err=True)
    line(f"{output}: {found.matrices} matrices over {found.tokens} tokens, run in {', '.join(found.types)}")


def _experts(some: Sequence[tuple[int, int]], of: int) -> str:
    """`3 of 256 experts (expert 5 of layer 0, …)`."""
    named = ", ".join(f"expert {expert} of layer {layer}" for layer, expert in some[:NAMED])
    return f"{len(some)} of {of} experts ({named}{', …' if len(some) > NAMED else ''})"
