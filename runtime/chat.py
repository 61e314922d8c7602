"""Render a conversation with a model's own jinja template, in a sandbox: templates come from strangers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sampan.errors import InputError, brief


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    special: Mapping[str, str],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation, as transformers' apply_chat_template renders it.

    `special` holds bos_token and eos_token. Raises InputError with the template's own message.
    """
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise InputError(f"chat template: {brief(message)}")

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().astimezone().strftime(form)
    try:
        return env.from_string(template).render(
            messages=messages, tools=tools or None, add_generation_prompt=add_generation_prompt, **special
        )
    except jinja2.TemplateError as e:
        raise InputError(f"chat template: {brief(str(e))}") from None
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as e:
        raise InputError(f"chat template: it failed on this conversation: {brief(str(e))}") from None
