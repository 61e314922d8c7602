"""An answer as it comes: chunks, one for each token, and what can be said of the whole at its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, wrong

from .grammar import Schema, source
from .reply import ToolCall, ToolDelta, whole_calls
from .sampling import Sampling, log_probabilities

if TYPE_CHECKING:
    from .session import Session

FinishReason = Literal["stop", "tool_calls", "stop_string", "length", "context", "cancelled"]
"""The model ended; it ended behind calls of tools; a stop string came; `max_tokens`; no room is left; `cancel`."""
SEEDS = 2**32  # a random seed is one that can be typed


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer.

    `max_tokens` None goes on until the context is full. `sampling` None takes the artifact's own. `seed` None takes a
    random one, told by `Stream.seed`. `logprobs` None computes none, 0 those of the chosen tokens, n also those of
    the n most probable ones. Stop strings end the answer in front of them, also inside of reasoning and tool calls.

    `schema`, a JSON schema, or `grammar`, in llguidance's form of Lark, say what the answer may be: no other token is
    chosen, and the end only where they allow it. Reasoning in front of the answer is free.

    `must_call`: a tool must be called, or the one of that name; without `parallel_calls` at most one call is made.

    `shift` goes on where the context is full: the first `shift` tokens are kept, the older half of the others is
    dropped, and what is left is evaluated again at its new positions; `Usage.dropped_tokens` tells how many.
    """

    max_tokens: int | None = 512
    sampling: Sampling | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    schema: Schema | None = None
    grammar: str | None = None
    shift: int | None = None
    must_call: bool | str = False
    parallel_calls: bool = True

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def check(self) -> None:
        """Raises InputError for what has no meaning."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise wrong("max_tokens", "1 or more", self.max_tokens)
        if self.seed is not None and self.seed < 0:
            raise InputError(f"the seed {self.seed} is negative; give 0 or more")
        if not all(self.stops):
            raise wrong("stop", "texts of at least one character", "an empty one")
        if self.logprobs is not None and self.logprobs < 0:
            raise wrong("logprobs", "0 or more", self.logprobs)
        source(self.schema, self.grammar)
        if self.shift is not None and self.shift < 0:
            raise wrong("shift", "0 or more tokens to keep", self.shift)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have stood there: its id, its bytes, its natural logarithm of probability."""

    token: int
    raw: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, and seconds of computing. `completion_tokens` counts the end token; `prefill_seconds` lasts to the first
    token's logits. `load_seconds` is what opening the artifact took.
    """

    prompt_tokens: int
    cached_tokens: int  # of the prompt, those that were not evaluated again
    completion_tokens: int
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    dropped_tokens: int = 0  # of prompt and answer, since the context was full

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt per second, of those that were evaluated."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_rate(self) -> float:
        """Tokens per second behind the first one; 0 where there is no second."""
        more = self.completion_tokens - 1
        return more / max(self.decode_seconds, 1e-9) if more > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One token and the text that it lets out.

    `text` may lag behind the token: parts of a character and what may become a stop string are held back. The last
    chunk has a `finish_reason` and the `usage`; where an answer was cancelled it has no token. `logprob` is that of the
    model itself, before penalties and temperature. In a conversation reasoning and calls of tools are no part of
    `text`.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    token: int | None = None
    raw: bytes = b""  # the bytes of the token; control tokens have none
    logprob: float | None = None
    top: tuple[Candidate, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    dropped: int = 0  # tokens that had to go in front of this one, since the context was full


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `tokens` has its end token where the model ended it."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage

    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation, as `chat` takes it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _object(c.arguments)}}
                for c in self.tool_calls
            ]
        return message


def _object(arguments: str) -> Any:
    """As templates want it: an object, where the text is one."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


class Stream(Iterator[Chunk]):
    """An answer as chunks, computed as they are asked for. `finish_reason` and `usage` stand once it has ended."""

    def __init__(
        self, begin: Callable[[Session], Generator[Chunk, None, None]], session: Session, prompt: Sequence[int],
        cancelled: threading.Event, seed: int,
    ) -> None:  # fmt: skip
        self._begin, self._cancelled, self.prompt, self.seed = begin, cancelled, prompt, seed
        self._chunks = begin(session)
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None

    def __next__(self) -> Chunk:
        chunk = next(self._chunks)
        if chunk.finish_reason is not None:
            self.finish_reason, self.usage = chunk.finish_reason, chunk.usage
        return chunk

    def move(self, session: Session) -> None:
        """Let another Session of the same artifact answer, before the first chunk was asked for."""
        self._chunks = self._begin(session)

    def cancel(self) -> None:
        """End the answer behind the token, or the part of the prompt, that is being computed; from any thread."""
        self._cancelled.set()

    def close(self) -> None:
        """Ask for no more; the answer has no `finish_reason` then."""
        self._chunks.close()

    def read(self) -> Answer:
        """The rest of the answer, whole."""
        return self.whole(list(self))

    def whole(self, chunks: Sequence[Chunk]) -> Answer:
        """What some chunks of an answer make that has ended."""
        if self.finish_reason is None or self.usage is None:
            raise InputError("this stream was closed before its end; ask again")
        return Answer(
            text="".join(c.text for c in chunks),
            reasoning="".join(c.reasoning for c in chunks),
            tool_calls=whole_calls([d for c in chunks for d in c.tool_calls]),
            tokens=tuple(c.token for c in chunks if c.token is not None),
            finish_reason=self.finish_reason,
            usage=self.usage,
        )


def most_probable(
    logits: NDArray[np.float32], token: int, n: int | None, piece: Callable[[int], bytes]
) -> tuple[float | None, tuple[Candidate, ...]]:
    """The log probability of a token, and the `n` most probable ones, the best first; nothing where n is None."""
    if n is None:
        return None, ()
    logprobs = log_probabilities(logits)
    n = min(n, len(logprobs))
    best = np.argpartition(logprobs, -n)[-n:] if n else np.empty(0, np.intp)
    best = best[np.lexsort((best, -logprobs[best]))]
    return float(logprobs[token]), tuple(Candidate(int(i), piece(int(i)), float(logprobs[i])) for i in best)
