"""sampan run: one answer, streamed, or a conversation."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._terminal import decoded, piped_text, plain_text

if TYPE_CHECKING:
    from sampan.runtime import Session
    from sampan.runtime.sampling import Sampling
    from sampan.runtime.engine import KV


@click.command("run", short_help="Ask a model; the answer is streamed.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="Hold a conversation: one line of input for each turn.")
@click.option("--system", help="A system message.")
@click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable of the chat template, such as enable_thinking=false: JSON, or a plain word. Can be repeated.",
)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: the model's own]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sampling.")
@click.option("--context", type=click.IntRange(1), help="Tokens of context.  [default: the model's, up to 4096]")
@click.option(
    "--kv", type=click.Choice(["f32", "f16", "q8_0"]), help="Number type of the cache.  [default: the engine's]"
)
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: one for each core]")
def command(
    model: Path, prompt: str | None, chat: bool, system: str | None, variables: tuple[str, ...], raw: bool,
    max_tokens: int, temperature: float | None, seed: int, context: int | None, kv: KV | None, threads: int | None,
) -> None:  # fmt: skip
    """Answer PROMPT with MODEL, a GGUF file or an ONNX folder.

    Text that comes through a pipe or from a file on standard input is the prompt, or follows PROMPT after an empty
    line.

    \b
    Examples:
      sampan run qwen.gguf "Why is the sky blue?"
      git diff | sampan run qwen.gguf --system "Review this change."
      sampan run qwen.gguf --chat --var enable_thinking=false
    """
    from sampan.errors import InputError, wrong
    from sampan.runtime import EngineOptions, open

    if chat and (raw or prompt is not None):
        raise wrong("--chat", "no PROMPT and no --raw beside it", "one")
    if not chat:
        piped = piped_text()
        text = "\n\n".join(part for part in (plain_text(prompt or ""), piped) if part.strip())
        if not text:
            raise InputError("there is no prompt; give PROMPT, text on standard input, or --chat")
    named = dict(map(_variable, variables))
    if raw and named:
        raise InputError("--var is for the chat template, which --raw leaves out; give one of them")
    with open(model, EngineOptions(context=context, threads=threads, kv=kv)) as session:
        sampling = session.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
            if not temperature and sampling.repetition_penalty != 1:
                penalty = f"the model's repetition penalty of {sampling.repetition_penalty:g}"
                click.echo(f"temperature 0 takes the most probable token, after {penalty}", err=True)
        messages = [{"role": "system", "content": plain_text(system)}] if system is not None else []
        if chat:
            _converse(session, messages, named, max_tokens, sampling, seed)
            return
        messages.append({"role": "user", "content": text})
        tokens = session.tokenize(text) if raw else session.tokenize_chat(messages, **named)
        _stream(session, tokens, max_tokens, sampling, seed)


def _variable(text: str) -> tuple[str, Any]:
    """`enable_thinking=false` → a name and a value: JSON, or a text of one word, which needs no quotes."""
    import json

    from sampan.errors import InputError, brief

    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise InputError(f"--var: expected NAME=VALUE, such as enable_thinking=false, found {brief(text)}")
    if name in ("messages", "tools", "self"):
        raise InputError(f"--var: {name} is no variable of a template: the conversation has it; give another name")
    try:
        return name, json.loads(value)
    except ValueError:
        pass
    if not re.fullmatch(r"[\w.+-]+", value) or value.lower() in ("true", "false", "null", "none", "nan"):
        raise InputError(
            f'--var: {name}: {brief(value)} is neither JSON (true, false, 3, "two words") nor a plain word; mend it'
        )
    return name, value


def _converse(
    session: Session, messages: list[dict[str, str]], named: dict[str, Any], max_tokens: int, sampling: Sampling,
    seed: int,
) -> None:  # fmt: skip
    terminal = sys.stdin.isatty()
    if terminal:
        click.echo("An empty line or Ctrl-D ends the conversation.", err=True)
    asked = False
    while True:
        if terminal:
            click.echo("> ", nl=False, err=True)
        line = decoded(sys.stdin.buffer.readline()).strip()
        if not line:
            break
        asked = True
        messages.append({"role": "user", "content": line})
        answer = _stream(session, session.tokenize_chat(messages, **named), max_tokens, sampling, seed)
        messages.append({"role": "assistant", "content": answer})
    if not asked and not terminal:
        raise click.UsageError("--chat found no line on standard input")


def _stream(session: Session, prompt: list[int], max_tokens: int, sampling: Sampling, seed: int) -> str:
    from sampan.runtime import Options

    pieces = []
    answer = session.stream(prompt, Options(max_tokens=max_tokens, sampling=sampling, seed=seed))
    for chunk in answer:
        click.echo(chunk.text, nl=False)
        sys.stdout.flush()
        pieces.append(chunk.text)
    click.echo()
    if answer.finish_reason == "length":
        click.echo(f"cut at --max-tokens {max_tokens}", err=True)
    elif answer.finish_reason == "context":
        click.echo(f"cut: the context of {session.context} tokens is full; --context sets another", err=True)
    return "".join(pieces)
