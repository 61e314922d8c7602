"""sampan push: a model onto a phone, into the folder of the demo app."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import _options
from ._out import line, show_json
from ._progress import Progress
from ._terminal import plain_text

if TYPE_CHECKING:
    from sampan.runtime.adb import Device
    from sampan.runtime.push import Transfer

BENCH_PROMPT = "Tell the story of a small boat that carries cargo from the big ships to the shore. " * 24


@click.command("push", short_help="Bring a GGUF file onto a phone, into the demo app.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--serial", envvar="ANDROID_SERIAL", show_envvar=True, help="Which device, where adb lists several.")
@_options.context
@click.option("--overwrite", is_flag=True, help="Replace another file of that name on the phone.")
@click.option("--run", "prompt", metavar="PROMPT", help="Then answer PROMPT there, greedily, and stream the answer.")
@click.option("--bench", is_flag=True, help="Then measure tokens per second there, of PROMPT or of one of our own.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads.  [default: the engine's choice]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path, serial: str | None, context: int | None, overwrite: bool, prompt: str | None, bench: bool,
    max_tokens: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Push MODEL, a GGUF file, through adb into the folder of the app org.sampan.demo.

    First it is checked that the phone can run the model: its processor, the app, free space, and memory for weights,
    cache and margin. A push that was interrupted goes on where it stopped. The file gets its name when the phone has
    computed the same SHA-256.

    \b
    Examples:
      sampan push qwen.gguf
      sampan push qwen.gguf --run "Why is the sky blue?" --bench
    """
    from sampan.errors import wrong
    from sampan.runtime import adb, push
    from sampan.runtime.memory import need

    if model.is_dir():
        raise wrong(model, "a GGUF file", "a folder", "one for an NPU is copied to its board as it is (docs/npu.md)")
    needed = need(model, context)
    push.check(model)
    device = adb.find(serial)
    phone = push.look(device)
    if warning := push.fits(device, phone, model, needed):
        line(f"warning: {warning}", err=True)
    transfer = push.prepare(device, phone, model, overwrite)
    sent, seconds = transfer.size - transfer.start, 0.0
    if not transfer.done:
        seconds = _send(device, transfer)
    result: dict[str, Any] = {
        "device": device.serial,
        "file": transfer.target,
        "bytes": transfer.size,
        "sent": sent,
        "seconds": round(seconds, 3),
        "sha256": transfer.digest.hexdigest(),
        "memory": {
            "context": needed.context, "weights": needed.weights, "cache": needed.cache, "margin": needed.margin,
            "total": phone.memory, "available": phone.available,
        },
    }  # fmt: skip
    if not as_json:
        line(_said(result, transfer.done))
    if prompt is not None or bench:
        told = plain_text(prompt) if prompt is not None else BENCH_PROMPT
        stream = prompt is not None and not as_json
        result |= _run(device, phone.programs, transfer.target, needed.context, threads, told, max_tokens, stream)
        if not bench:
            del result["bench"]
        elif not as_json:
            line(_speed(result["bench"]))
    if as_json:
        show_json(result, indent=1)


def _send(device: Device, transfer: Transfer) -> float:
    """Seconds from the first byte to the file's name."""
    from sampan.runtime import push
    from sampan.units import human

    start = time.monotonic()
    if transfer.start:
        line(f"{human(transfer.start)} of {human(transfer.size)} are there already", err=True)
    with Progress(transfer.size - transfer.start, transfer.model.name) as bar:
        push.send(device, transfer, bar)
    line(f"{device.serial}: computing the SHA-256", err=True)
    push.finish(device, transfer)
    return time.monotonic() - start


def _said(result: dict[str, Any], done: bool) -> str:
    from sampan.units import human

    how = "already there" if done else f"{human(result['sent'])} pushed in {result['seconds']:.1f} s"
    return f"{result['file']}: {how}, SHA-256 {result['sha256'][:12]}… as here"


def _run(
    device: Device, programs: str, target: str, context: int, threads: int, prompt: str, max_tokens: int, stream: bool
) -> dict[str, Any]:
    from sampan.runtime import remote

    pieces = []

    def text(piece: str) -> None:
        pieces.append(piece)
        if stream:
            click.echo(piece, nl=False)
            sys.stdout.flush()

    with remote.engine(device, remote.program(device, programs)) as running:
        remote.load(running, target, context, threads)
        speed = remote.chat(running, prompt, max_tokens, text)
    if stream:
        click.echo()
    if speed.reason == "length" and stream:
        line(f"cut at --max-tokens {max_tokens}", err=True)
    bench = {
        "prompt_tokens": speed.prompt, "prefill_ms": speed.prefill_ms, "prefill_per_second": speed.prefill,
        "tokens": speed.tokens, "decode_ms": speed.decode_ms, "decode_per_second": speed.decode,
    }  # fmt: skip
    return {"answer": "".join(pieces), "reason": speed.reason, "bench": bench}


def _speed(bench: dict[str, Any]) -> str:
    def rate(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.1f} tokens/s"

    prefill, decode = rate(bench["prefill_per_second"]), rate(bench["decode_per_second"])
    return f"prefill {prefill} ({bench['prompt_tokens']} tokens), decode {decode} ({bench['tokens']} tokens)"
