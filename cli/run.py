"""sampan run: one answer, streamed, or a conversation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sampan.runtime import Session
    from sampan.runtime.sampling import Sampling


@click.command("run", short_help="Ask a model; the answer is streamed.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="Hold a conversation: one line of input for each turn.")
@click.option("--system", help="A system message.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: the model's own]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampling.")
@click.option("--context", type=click.IntRange(1), help="Tokens of context.  [default: the model's, up to 4096]")
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: one for each core]")
def command(
    model: Path, prompt: str | None, chat: bool, system: str | None, raw: bool, max_tokens: int,
    temperature: float | None, seed: int, context: int | None, threads: int | None,
) -> None:  # fmt: skip
    """Answer PROMPT (or standard input) with MODEL, a GGUF file.

    \b
    Examples:
      sampan run qwen.gguf "Why is the sky blue?"
      git diff | sampan run qwen.gguf --system "Review this change."
      sampan run qwen.gguf --chat
    """
    from sampan.errors import wrong
    from sampan.runtime import EngineOptions, open

    if chat and (raw or prompt is not None):
        raise wrong("--chat", "no PROMPT and no --raw beside it", "one")
    if not chat and prompt is None:
        if sys.stdin.isatty():
            raise wrong("PROMPT", "a prompt, text on standard input, or --chat", "none of them")
        prompt = sys.stdin.read()
    with open(model, EngineOptions(context=context, threads=threads)) as session:
        sampling = session.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        messages = [{"role": "system", "content": system}] if system else []
        if chat:
            _converse(session, messages, max_tokens, sampling, seed)
            return
        messages.append({"role": "user", "content": prompt or ""})
        tokens = session.tokenize(prompt or "") if raw else session.tokenize_chat(messages)
        _stream(session, tokens, max_tokens, sampling, seed)


def _converse(session: Session, messages: list[dict[str, str]], max_tokens: int, sampling: Sampling, seed: int) -> None:
    if sys.stdin.isatty():
        click.echo("An empty line or Ctrl-D ends the conversation.", err=True)
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        messages.append({"role": "user", "content": line})
        answer = _stream(session, session.tokenize_chat(messages), max_tokens, sampling, seed)
        messages.append({"role": "assistant", "content": answer})


def _stream(session: Session, prompt: list[int], max_tokens: int, sampling: Sampling, seed: int) -> str:
    pieces = []
    for piece in session.generate(prompt, max_tokens=max_tokens, sampling=sampling, seed=seed):
        click.echo(piece, nl=False)
        sys.stdout.flush()
        pieces.append(piece)
    click.echo()
    return "".join(pieces)
