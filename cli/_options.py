"""Options that several commands have, with one meaning."""

from __future__ import annotations

import click

context = click.option(
    "--context", type=click.IntRange(1), help="Tokens of context.  [default: the model's, up to 4096]"
)
kv = click.option(
    "--kv", type=click.Choice(["f32", "f16", "q8_0"]), help="Number type of the cache.  [default: the engine's]"
)
THREADS = click.IntRange(1, 512)
threads = click.option("--threads", type=THREADS, help="Threads.  [default: one for each fast core]")
target = click.option(
    "--target", default="cpu", show_default=True, help="Where it runs; `sampan doctor` lists what is there."
)
