"""sampan run: one answer, streamed, or a conversation."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._out import show_json
from ._terminal import colours, decoded, piped_text, plain_text

if TYPE_CHECKING:
    from sampan.runtime import Chunk, Options, Session, Stream, Usage
    from sampan.runtime.engine import KV

DIM, NORMAL = "\x1b[2m", "\x1b[22m"
SWITCHES = ("enable_thinking", "thinking")  # variables of templates: Qwen's and most; Kimi's and DeepSeek's


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
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: the model's own, as the next]")
@click.option("--top-k", type=click.IntRange(0), help="Choose among the K most probable tokens; 0: all.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1), help="Choose among the most probable tokens that hold this share."
)
@click.option(
    "--min-p", type=click.FloatRange(0, 1), help="Leave out tokens below this share of the most probable one."
)
@click.option(
    "--repeat-penalty", type=click.FloatRange(0, min_open=True), help="Above 1: fewer of the tokens that were there."
)
@click.option("--seed", type=click.IntRange(0), help="Seed of the sampling.  [default: random; --stats tells it]")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End in front of this text. Can be repeated.")
@click.option("--schema", metavar="JSON|FILE", help="JSON schema that the answer is held to.")
@click.option("--grammar", type=click.Path(path_type=Path), help="Grammar that the answer is held to, as Lark's.")
@click.option("--think/--no-think", default=None, help="Switch reasoning on or off, where the template can.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, with reasoning, reason and usage.")
@click.option("--stats", is_flag=True, help="Print the seed, counts and speeds on standard error.")
@click.option("--context", type=click.IntRange(1), help="Tokens of context.  [default: the model's, up to 4096]")
@click.option(
    "--kv", type=click.Choice(["f32", "f16", "q8_0"]), help="Number type of the cache.  [default: the engine's]"
)
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: one for each core]")
def command(
    model: Path, prompt: str | None, chat: bool, system: str | None, variables: tuple[str, ...], raw: bool,
    max_tokens: int, temperature: float | None, top_k: int | None, top_p: float | None, min_p: float | None,
    repeat_penalty: float | None, seed: int | None, stops: tuple[str, ...], think: bool | None, as_json: bool,
    schema: str | None, grammar: Path | None, stats: bool, context: int | None, kv: KV | None, threads: int | None,
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
    from sampan.runtime import EngineOptions, Options, open

    from ._held import held

    if chat and (raw or prompt is not None):
        raise wrong("--chat", "no PROMPT and no --raw beside it", "one")
    if not chat:
        piped = piped_text()
        text = "\n\n".join(part for part in (plain_text(prompt or ""), piped) if part.strip())
        if not text:
            raise InputError("there is no prompt; give PROMPT, text on standard input, or --chat")
    named = dict(map(_variable, variables))
    if raw and (named or think is not None):
        option = "--var" if named else "--think"
        raise InputError(f"{option} is for the chat template, which --raw leaves out; give one of them")
    wanted = held(schema, grammar)
    asked: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repeat_penalty
    }  # fmt: skip
    with open(model, EngineOptions(context=context, threads=threads, kv=kv)) as session:
        sampling = replace(session.sampling, **{k: v for k, v in asked.items() if v is not None})
        if temperature == 0 and repeat_penalty is None and sampling.repetition_penalty != 1:
            penalty = f"the model's repetition penalty of {sampling.repetition_penalty:g}"
            click.echo(f"temperature 0 takes the most probable token, after {penalty}", err=True)
        if think is not None:
            named |= _switch(session, think)
        options = Options(max_tokens, sampling, seed, tuple(map(plain_text, stops)), **wanted)
        show = Show(as_json, stats, session.context)
        messages: list[dict[str, Any]] = []
        if system is not None:
            messages.append({"role": "system", "content": plain_text(system)})
        if chat:
            _converse(session, messages, named, options, show)
        elif raw:
            show(session.stream(text, options))
        else:
            show(session.chat([*messages, {"role": "user", "content": text}], options=options, **named))


def _switch(session: Session, think: bool) -> dict[str, bool]:
    """The variable by which the template switches reasoning."""
    from sampan.errors import InputError

    names = [n for n in SWITCHES if any(re.search(rf"\b{n}\b", t) for t in session.chat_templates.values())]
    if not names:
        raise InputError("--think: this model's chat template cannot switch reasoning; leave the option out")
    return {names[0]: think}


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
    session: Session, messages: list[dict[str, Any]], named: dict[str, Any], options: Options, show: Show
) -> None:
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
        messages.append(show(session.chat(messages, options=options, **named)))
    if not asked and not terminal:
        raise click.UsageError("--chat found no line on standard input")


@dataclass(frozen=True, slots=True)
class Show:
    """Prints answers. Reasoning is for those who watch: a pipe gets the answer alone, --json both."""

    as_json: bool
    stats: bool
    context: int

    def __call__(self, stream: Stream) -> dict[str, Any]:
        """Print an answer as it comes; the message that it is."""
        chunks = list(stream) if self.as_json else self._printed(stream)
        answer = stream.whole(chunks)
        if self.as_json:
            show_json(asdict(answer) | {"seed": stream.seed})
        if answer.finish_reason == "length":
            click.echo(f"cut at --max-tokens {len(answer.tokens)}", err=True)
        elif answer.finish_reason == "context":
            click.echo(f"cut: the context of {self.context} tokens is full; --context sets another", err=True)
        if self.stats:
            click.echo(_statistics(answer.usage, stream.seed), err=True)
        return answer.message()

    @staticmethod
    def _printed(stream: Stream) -> list[Chunk]:
        watched, dimmed = sys.stdout.isatty(), colours(sys.stdout)
        chunks, thinking = [], False
        try:
            for chunk in stream:
                if watched and chunk.reasoning:
                    click.echo(("" if thinking or not dimmed else DIM) + chunk.reasoning, nl=False, color=True)
                    thinking = True
                if chunk.text:
                    if thinking:
                        click.echo((NORMAL if dimmed else "") + "\n\n", nl=False, color=True)
                        thinking = False
                    click.echo(chunk.text, nl=False)
                sys.stdout.flush()
                chunks.append(chunk)
        finally:
            if thinking and dimmed:
                click.echo(NORMAL, nl=False, color=True)
        click.echo()
        return chunks


def _statistics(usage: Usage, seed: int) -> str:
    evaluated = usage.prompt_tokens - usage.cached_tokens
    return (
        f"seed {seed}; loaded in {usage.load_seconds:.2f} s; prompt {evaluated} tokens at {usage.prefill_rate:.1f}/s, "
        f"{usage.cached_tokens} more cached; answer {usage.completion_tokens} tokens at {usage.decode_rate:.1f}/s"
    )
