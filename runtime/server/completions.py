"""`/v1/completions`: a text as it is, without the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sampan.errors import brief

from ..session import Session
from ..stream import Chunk, Stream
from .chat import SMALLEST
from .fields import COMMON, TOP_LOGPROBS, Asked, Check, integer, options, read
from .refusals import bad
from .settings import Settings

PREFIX, WHOLE, PART = "cmpl-", "text_completion", "text_completion"
LONGEST = 16  # tokens of an answer where the request names no limit, as OpenAI has it


def prompt(name: str, value: Any) -> str | list[int]:
    """A check: one text, or the ids of its tokens; a list of one is the one."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(type(t) is int for t in value):
        raise bad(name, f"expected one text or one list of token ids, found {brief(value)}")
    return value


KNOWN: dict[str, Check] = COMMON | {"prompt": prompt, "logprobs": integer(0, TOP_LOGPROBS)}


def parse(body: Any, session: Session, settings: Settings) -> Asked:
    """The request, checked."""
    found = read(body, KNOWN, settings.name)
    if "prompt" not in found:
        raise bad("prompt", "it is missing; give a text")
    found.setdefault("max_tokens", LONGEST)
    return Asked(
        options(found, session, settings, found.get("logprobs")),
        prompt=found["prompt"],
        stream=found.get("stream", False),
        usage=found.get("stream_options", False),
    )


def begin(asked: Asked, session: Session) -> Stream:
    """Start to answer; control tokens in the text are such, since a caller who wants turns writes them here."""
    return session.stream(asked.prompt or "", asked.options)


def whole(chunks: Sequence[Chunk], stream: Stream, asked: Asked) -> dict[str, Any]:
    """The one choice of an answer that is not streamed."""
    return {"text": stream.whole(chunks).text, "logprobs": _logprobs(chunks, asked)}


def first() -> None:
    """Nothing opens a streamed answer."""


def part(chunk: Chunk, asked: Asked) -> dict[str, Any] | None:
    """The choice of a streamed event; None where a chunk lets out nothing."""
    logprobs = _logprobs([chunk], asked)
    if not chunk.text and not (logprobs and logprobs["tokens"]):
        return None
    return {"text": chunk.text, "logprobs": logprobs}


def last() -> dict[str, Any]:
    """What closes a streamed answer."""
    return {"text": "", "logprobs": None}


def _logprobs(chunks: Sequence[Chunk], asked: Asked) -> dict[str, Any] | None:
    """Of every token with bytes; `text_offset` counts characters from the start of these."""
    if asked.options.logprobs is None:
        return None
    told = [c for c in chunks if c.raw and c.logprob is not None]
    tokens = [c.raw.decode(errors="replace") for c in told]
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [max(c.logprob or 0.0, SMALLEST) for c in told],
        "top_logprobs": [{t.raw.decode(errors="replace"): max(t.logprob, SMALLEST) for t in c.top} for c in told],
        "text_offset": offsets[:-1],
    }
