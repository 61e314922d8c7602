"""sampan run: one answer, streamed, or a conversation."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import _options
from ._answer import Show
from ._out import said
from ._terminal import piped_text, plain_text

if TYPE_CHECKING:
    from sampan.runtime.engine import KV

LONGEST = 512  # tokens of an answer that nobody can stop


@click.command("run", short_help="Ask a model; the answer is streamed.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="Hold a conversation: at a terminal, or one line of input for each turn.")
@click.option("--file", type=click.Path(path_type=Path), help="A UTF-8 file with the prompt, or what follows PROMPT.")
@click.option("--system", help="A system message.")
@click.option("--system-file", type=click.Path(path_type=Path), help="A UTF-8 file with the system message.")
@click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable of the chat template, such as enable_thinking=false: JSON, or a plain word. Can be repeated.",
)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option(
    "--max-tokens", type=click.IntRange(1), help=f"Longest answer.  [default: {LONGEST}; typed conversations: none]"
)
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
@_options.context
@click.option(
    "--shift", type=click.IntRange(0), metavar="N",
    help="Where the context is full, keep its first N tokens, drop half of the others and go on.",
)  # fmt: skip
@_options.kv
@_options.threads
@_options.target
def command(
    model: Path, prompt: str | None, chat: bool, file: Path | None, system: str | None, system_file: Path | None,
    variables: tuple[str, ...], raw: bool,
    max_tokens: int | None, temperature: float | None, top_k: int | None, top_p: float | None, min_p: float | None,
    repeat_penalty: float | None, seed: int | None, stops: tuple[str, ...], think: bool | None, as_json: bool,
    schema: str | None, grammar: Path | None, stats: bool, context: int | None, kv: KV | None, threads: int | None,
    target: str, shift: int | None,
) -> None:  # fmt: skip
    """Answer PROMPT with MODEL: a GGUF file, an ONNX folder or graph, or one of a hub's, as in owner/name:Q4_K_M.

    Text of a file, through a pipe or on standard input is the prompt, or follows PROMPT after an empty line. Without
    any of them a terminal gets a conversation: /help there lists its commands.

    \b
    Examples:
      sampan run qwen.gguf "Why is the sky blue?"
      git diff | sampan run qwen.gguf --system "Review this change."
      sampan run qwen.gguf "Summarise this text." --file report.txt
      sampan run qwen.gguf --chat --var enable_thinking=false
    """
    from sampan.errors import InputError, wrong
    from sampan.files import read_text
    from sampan.model import find_model
    from sampan.runtime import EngineOptions, Options, open
    from sampan.runtime.chat import begin

    from ._converse import Talk, converse_lines, switch
    from ._held import held

    if chat and (raw or prompt is not None or file is not None):
        raise wrong("--chat", "no PROMPT, no --file and no --raw beside it", "one")
    if system_file is not None:
        if system is not None:
            raise wrong("--system-file", "no --system beside it", "both")
        system = read_text(system_file).removesuffix("\n")  # editors put it there
    if not chat:
        parts = [plain_text(prompt or ""), read_text(file) if file is not None else "", piped_text()]
        text = "\n\n".join(part for part in parts if part.strip())
        chat = not text and not raw and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
        if not text and not chat:
            raise InputError("there is no prompt; give PROMPT, --file, text on standard input, or --chat")
    named = dict(map(_variable, variables))
    if raw and (named or think is not None):
        option = "--var" if named else "--think"
        raise InputError(f"{option} is for the chat template, which --raw leaves out; give one of them")
    wanted = held(schema, grammar)
    asked: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repeat_penalty
    }  # fmt: skip
    how, place = EngineOptions(context=context, threads=threads, kv=kv), find_model(model, say=said)
    if not raw:
        begin()
    if context:
        from sampan.runtime import lanes

        lanes.check(place, context, kv, 1)
    with open(place, how, target=target) as session:
        sampling = replace(session.sampling, **{k: v for k, v in asked.items() if v is not None})
        if temperature == 0 and repeat_penalty is None and sampling.repetition_penalty != 1:
            penalty = f"the model's repetition penalty of {sampling.repetition_penalty:g}"
            click.echo(f"temperature 0 takes the most probable token, after {penalty}", err=True)
        if think is not None:
            if not (found := switch(session, think)):
                raise InputError("--think: this model's chat template cannot switch reasoning; leave the option out")
            named |= found
        typed = chat and sys.stdin.isatty()
        longest = max_tokens or (None if typed else LONGEST)
        options = Options(longest, sampling, seed, tuple(map(plain_text, stops)), **wanted, shift=shift)
        show = Show(as_json, stats, session.context)
        messages: list[dict[str, Any]] = []
        if system is not None:
            messages.append({"role": "system", "content": plain_text(system)})
        if typed:
            Talk(session, messages, named, options, show)()
        elif chat:
            converse_lines(session, messages, named, options, show)
        elif raw:
            show(session.stream(text, options))
        else:
            show(session.chat([*messages, {"role": "user", "content": text}], options=options, **named))


def _variable(text: str) -> tuple[str, Any]:
    """`enable_thinking=false` → a name and a value: JSON, or a text of one word, which needs no quotes."""
    import json

    from sampan.errors import InputError, brief
    from sampan.runtime.chat import ARGUMENTS

    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise InputError(f"--var: expected NAME=VALUE, such as enable_thinking=false, found {brief(text)}")
    if name in ARGUMENTS:
        raise InputError(f"--var: {name} is no variable of a template: the conversation has it; give another name")
    try:
        return name, json.loads(value)
    except RecursionError:
        raise InputError(f"--var: {name}: {brief(value, 20)} is nested too deeply; mend it") from None
    except ValueError:
        pass
    if not re.fullmatch(r"[\w.+-]+", value) or value.lower() in ("true", "false", "null", "none", "nan"):
        raise InputError(
            f'--var: {name}: {brief(value)} is neither JSON (true, false, 3, "two words") nor a plain word; mend it'
        )
    return name, value
