"""How an answer is shown: on a terminal as text that moves no cursor, its reasoning dimmed; elsewhere as it is."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from sampan.printable import printable_lines

from ._out import show_json
from ._terminal import colours

if TYPE_CHECKING:
    from sampan.runtime import Answer, Chunk, Stream, Usage

DIM, NORMAL = "\x1b[2m", "\x1b[22m"


@dataclass(frozen=True, slots=True)
class Show:
    """Prints answers. Reasoning is for those who watch: a pipe gets the answer alone, --json both."""

    as_json: bool
    stats: bool
    context: int

    def __call__(self, stream: Stream) -> Answer:
        """Print an answer as it comes; the whole of it."""
        chunks = list(stream) if self.as_json else _printed(stream)
        answer = stream.whole(chunks)
        if self.as_json:
            show_json(asdict(answer) | {"seed": stream.seed})
        if dropped := answer.usage.dropped_tokens:
            click.echo(f"the context of {self.context} tokens was full: --shift dropped {dropped} older ones", err=True)
        if answer.finish_reason == "length":
            click.echo(f"cut at --max-tokens {len(answer.tokens)}", err=True)
        elif answer.finish_reason == "context":
            click.echo(f"cut: the context of {self.context} tokens is full; --context sets another", err=True)
        if self.stats:
            click.echo(statistics(answer.usage, stream.seed), err=True)
        return answer


def _printed(stream: Stream) -> list[Chunk]:
    watched, dimmed = sys.stdout.isatty(), colours(sys.stdout)
    chunks, thinking = [], False
    try:
        for chunk in stream:
            if watched and chunk.reasoning:
                begin = "" if thinking or not dimmed else DIM
                click.echo(begin + printable_lines(chunk.reasoning), nl=False, color=True)
                thinking = True
            if chunk.text:
                if thinking:
                    click.echo((NORMAL if dimmed else "") + "\n\n", nl=False, color=True)
                    thinking = False
                click.echo(printable_lines(chunk.text) if watched else chunk.text, nl=False)
            sys.stdout.flush()
            chunks.append(chunk)
    finally:
        if thinking and dimmed:
            click.echo(NORMAL, nl=False, color=True)
    click.echo()
    return chunks


def statistics(usage: Usage, seed: int) -> str:
    """Seed, counts and speeds of an answer, as a line."""
    evaluated = usage.prompt_tokens - usage.cached_tokens
    return (
        f"seed {seed}; loaded in {usage.load_seconds:.2f} s; prompt {evaluated} tokens at {usage.prefill_rate:.1f}/s, "
        f"{usage.cached_tokens} more cached; answer {usage.completion_tokens} tokens at {usage.decode_rate:.1f}/s"
    )
