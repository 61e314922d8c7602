"""The loop of an answer: evaluate, choose, tell."""

from __future__ import annotations

import codecs
import itertools
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from sampan.errors import wrong

from .grammar import Constraint
from .markers import StopStrings
from .reply import Parts, Reply, joined
from .sampling import Sampler
from .stream import Chunk, FinishReason, Options, Usage, most_probable

if TYPE_CHECKING:
    from .engine import Engine
    from .session import Session


class CancelledError(Exception):
    """Between two parts of a prompt."""


def answer(
    session: Session, tokens: list[int], sampler: Sampler, options: Options, cancelled: threading.Event, reply: Reply,
    constraint: Constraint | None, gone: int = 0,
) -> Generator[Chunk, None, None]:  # fmt: skip
    """The chunks of an answer to `tokens`, which grow with it; `Session` holds its turn for each token alone.

    `gone` tokens of the prompt were left out.
    """
    user, prompt, cached, made, dropped = object(), len(tokens) + gone, 0, 0, 0
    room = session.context - prompt if options.shift is None else None
    most = min((n for n in (options.max_tokens, room) if n is not None), default=None)
    text, stops = codecs.getincrementaldecoder("utf-8")(errors="replace"), StopStrings(options.stops)
    prefill = decode = 0.0
    reason: FinishReason | None = None
    last: int | None = None  # the token of the last chunk
    if constraint and not constraint.document:
        reply.hold()
    for n in itertools.count():
        gone = 0 if n else gone
        if (keep := options.shift) is not None and (over := overflow(len(tokens), keep, session.context)):
            # as a new user of the cache: what stands at other positions now is evaluated again
            tokens, user, gone = tokens[:keep] + tokens[keep + over :], object(), gone + over
        dropped += gone
        began = time.perf_counter()
        with session._turn:
            try:
                logits, start = session._advance(user, tokens, cancelled)
            except CancelledError:
                break
            if n == 0:
                cached, prefill = start, time.perf_counter() - began
                began += prefill
            last = token = sampler.choose(logits, constraint.allowed() if constraint else None)
            engine = session._engine
            ended, raw = engine.is_end(token), engine.piece(token)
            mark = b"" if ended or raw else _marker(engine, token, reply)
            logprob, top = most_probable(logits, token, options.logprobs, engine.piece)
        tokens.append(token)
        made += 1
        if constraint and not ended:
            constraint.take(token, raw or mark)
            if n == 0 and constraint.document:
                reply.document(reasoning=constraint.reasons)
        parts = reply.feed("" if ended else stops.feed(text.decode(raw or mark)))
        if ended:
            reason = "stop"
        elif stops.hit:
            reason = "stop_string"
        elif n + 1 == most:
            reason = "length" if most == options.max_tokens else "context"
        if n:
            decode += time.perf_counter() - began
        if reason is not None:
            break
        yield Chunk(parts.text, parts.reasoning, parts.calls, token, raw, logprob, top, dropped=gone)
        if cancelled.is_set():
            break
    if reason is None:
        reason, parts, last, raw, logprob, top = "cancelled", Parts(), None, b"", None, ()
    rest = "" if reason == "stop_string" else stops.feed(text.decode(b"", final=True)) + stops.close()
    parts = joined([parts, reply.feed(rest), reply.close(whole=reason == "stop")])
    if reason == "stop" and reply.calls:
        reason = "tool_calls"
    usage = Usage(prompt, cached, made, session.load_seconds, prefill, decode, dropped)
    yield Chunk(parts.text, parts.reasoning, parts.calls, last, raw, logprob, top, reason, usage, gone)


def check_shift(keep: int | None, context: int) -> None:
    """Raises InputError where a shift would keep so many tokens that none is left to drop and to choose."""
    if keep is not None and keep > context - 2:
        raise wrong("shift", f"at most {context - 2} tokens to keep, in a context of {context}", keep)


def overflow(tokens: int, keep: int, context: int) -> int:
    """How many tokens behind the first `keep` must go, so that one more fits: half of them, as often as needed."""
    left = tokens
    while left >= context:
        left -= (left - keep + 1) // 2
    return tokens - left


def _marker(engine: Engine, token: int, reply: Reply) -> bytes:
    """The text of a control token that a parser reads; nothing of others."""
    text = engine.piece(token, control=True) if reply.markers else b""
    return text if text.decode(errors="replace") in reply.markers else b""
