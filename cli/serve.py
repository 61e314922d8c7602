"""sampan serve: an OpenAI-compatible server and a chat page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import _options
from ._out import line, said
from ._terminal import plain_text

if TYPE_CHECKING:
    from sampan.runtime.engine import KV


@click.command("serve", short_help="Serve a model: OpenAI's API and a chat page.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; one beyond this machine needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0: a free one.")
@click.option(
    "--api-key", envvar="SAMPAN_API_KEY", show_envvar=True, metavar="KEY", help="Key that every request must bring."
)
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Web pages of this origin may ask. Can be repeated.")
@click.option("--name", help="Name of the model in the API.  [default: the file's]")
@click.option("--queue", type=click.IntRange(0), default=64, show_default=True, help="Requests that may wait.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: the context's rest]")
@click.option("--max-body", type=click.IntRange(1), default=2 << 20, show_default=True, help="Bytes of a request.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=600, show_default=True,
    help="Seconds for a request, waiting and answer together.",
)  # fmt: skip
@click.option(
    "--prompt-cache", type=click.IntRange(0), default=512, show_default=True, metavar="MB",
    help="Memory for what was evaluated of other conversations.",
)  # fmt: skip
@_options.context
@click.option(
    "--shift", type=click.IntRange(0), metavar="N",
    help="Where the context is full, leave out the oldest turns; in an answer, keep N tokens and half of the others.",
)  # fmt: skip
@_options.kv
@click.option(
    "--parallel", type=click.IntRange(1, 64), metavar="N",
    help="Answers whose tokens llama.cpp computes together, each with a context of its own; with 1 they take turns.  "
    "[default: 4, or as many as fit into memory]",
)  # fmt: skip
@_options.threads
@_options.target
def command(
    model: Path, host: str, port: int, api_key: str | None, cors: tuple[str, ...], name: str | None, queue: int,
    max_tokens: int | None, max_body: int, timeout: float, context: int | None, kv: KV | None, threads: int | None,
    target: str, shift: int | None, prompt_cache: int, parallel: int | None,
) -> None:  # fmt: skip
    """Serve MODEL, as `sampan run` takes it, until Ctrl-C or SIGTERM.

    Clients of OpenAI's API get the address with /v1 as their base URL; a browser gets a chat page at the address
    itself. A few answers are made at once, the other requests wait in order.

    \b
    Examples:
      sampan serve qwen.gguf
      SAMPAN_API_KEY=secret sampan serve qwen.gguf --host 0.0.0.0
    """
    import starlette  # noqa: F401 - before a model is loaded
    import uvicorn  # noqa: F401

    from sampan.model import find_model
    from sampan.runtime import EngineOptions, lanes, open
    from sampan.runtime.server import app
    from sampan.runtime.server.settings import Settings

    found = find_model(model, say=said)
    name = plain_text(name or (model.resolve().stem if model.exists() else str(model)))
    settings = Settings(name, host, port, api_key, cors, queue, max_body, max_tokens, timeout, shift, prompt_cache > 0)
    sock = app.bind(settings)
    if parallel is None:
        parallel = lanes.fitting(found, context, kv) if target == "cpu" else 1
    lanes.check(found, context, kv, parallel)
    how = EngineOptions(
        context=context, threads=threads, kv=kv, prompt_cache=prompt_cache * 1_000_000, sequences=parallel
    )
    with sock, open(found, how, target=target) as session:
        service = app.service(session, settings)
        sock.listen()
        address, number = sock.getsockname()[:2]
        line(f"serving {settings.name} on http://{f'[{address}]' if ':' in address else address}:{number}")
        app.run(service, sock)
