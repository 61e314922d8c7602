"""A Session: tokenise, score, generate and chat with an artifact, the same for every engine."""

from __future__ import annotations

import operator
import os
import secrets
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from sampan.chat_template import choose, named_templates, named_tokens
from sampan.errors import ContextLengthError, InputError, brief, wrong
from sampan.model import find_model

from . import calls, state
from .chat import render
from .engine import Engine, EngineOptions, suspect
from .generate import CancelledError, answer, check_shift
from .grammar import Constraint, Words
from .opened import Opened
from .recent import Messages, recent
from .reply import Reply, parsers
from .sampling import Sampler, Sampling
from .sanitize import BREAK, broken, control_tokens, tokenize
from .stash import Stash, shared
from .stream import SEEDS, Options, Stream
from .target import DEFAULT, open_engine

SLICE = 16  # positions whose logits are handed out together
EXIT_SECONDS = 60.0  # that the end of the process waits for an engine at most
LOGITS_AT_ONCE = 128  # positions whose logits an engine holds: 78 MB at 152k words


class Session:
    """An open artifact; close it, use it in a `with` block, or drop it.

    It has one cache. A second use while an answer is streamed takes that cache, and the stream, when it is asked to go
    on, evaluates again what it lost: both are right, and slower. Threads take turns, a token each.
    """

    def __init__(
        self, engine: Engine, *, vocabulary_only: bool = False, load_seconds: float = 0.0, files: Opened | None = None,
        prompt_cache: int = 0,
    ) -> None:  # fmt: skip
        self._open: Engine | None = engine
        self._files = files or Opened()
        self.load_seconds = load_seconds
        self._vocabulary_only = vocabulary_only
        self._turn = threading.RLock()
        self._release = weakref.finalize(self, engine.close)
        self._release.atexit = False  # the system takes the memory faster
        # at exit: a daemon thread that still streams halts between two tokens, not inside of the engine
        weakref.finalize(self, self._turn.acquire, timeout=EXIT_SECONDS)
        self._cached: list[int] = []  # what the engine's cache holds at least
        self._added: dict[str, bool] = {}  # as `Engine.added`, once it was asked for
        self._user: object = None  # whose tokens those are
        self._stash = Stash(prompt_cache)
        self._words = cache(partial(Words, engine))  # the vocabulary for grammars
        self.metadata = engine.metadata()

    @property
    def _engine(self) -> Engine:
        if self._open is None:
            raise InputError("this Session is closed; open the artifact again")
        return self._open

    @property
    def vocab(self) -> int:
        """Number of logits for a position."""
        return self._engine.vocab

    @property
    def context(self) -> int:
        """Most tokens that fit, prompt and answer together."""
        return self._engine.context

    @property
    def chat_templates(self) -> dict[str, str]:
        """The jinja templates that the artifact carries, by name; the usual one is called "default"."""
        return named_templates(self.metadata)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of special tokens that a template can ask for: bos_token and its like."""
        roles = {k: self.metadata.get(f"tokenizer.{k}", "") for k in ("bos_token", "eos_token")}
        return named_tokens(self.metadata, roles)

    @property
    def sampling(self) -> Sampling:
        """The sampling defaults that the artifact carries; greedy where it carries none."""
        return Sampling.from_metadata(self.metadata)

    def tokenize(self, text: str, *, special: bool = True, around: bool = True) -> list[int]:
        """Token ids of a text. With `special`, control tokens written out in it, such as `<|im_end|>`, are recognised.

        With `around`, there are the tokens that this tokenizer puts around every text, such as BOS.
        """
        try:
            text.encode()
        except UnicodeEncodeError as e:
            half = f"{brief(text[e.start])} at character {e.start}"
            raise InputError(f"the text has half a character, {half}; decode it with errors='replace'") from None
        with self._turn:
            return self._engine.tokenize(text, special=special, around=around)

    def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        sanitize_control_tokens: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Token ids of what `render_chat` gives; the template alone says whether a conversation begins with BOS.

        With `sanitize_control_tokens` those in messages, tools and variables stay text: for what strangers write.
        """
        return self._chat_tokens(messages, tools, sanitize_control_tokens, variables)[1]

    def _chat_tokens(
        self, messages: Messages, tools: Messages | None, sanitize: bool, variables: dict[str, Any]
    ) -> tuple[str, list[int]]:
        """The text of a conversation and its tokens."""
        controls: list[str] = []
        if sanitize:
            with self._turn:
                self._added = self._added or dict(self._engine.added())
            controls = control_tokens(self._added, self._template(tools, variables))
            messages, tools, variables = (broken(value, controls) for value in (messages, tools, variables))
        text = self.render_chat(messages, tools, **variables)
        return text.replace(BREAK, "") if sanitize else text, tokenize(
            text, controls, partial(self.tokenize, around=False)
        )

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; bytes that are no UTF-8 become replacement characters."""
        ids = self._ids(tokens)
        with self._turn:
            return b"".join(map(self._engine.piece, ids)).decode(errors="replace")

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position, float32 [len(tokens), vocab], from an empty cache."""
        return np.concatenate(list(self.logit_slices(tokens)))

    def logit_slices(self, tokens: Sequence[int], *, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Logits of the positions from `first`, float32 [at most 16, vocab] each, from an empty cache."""
        return self._slices(self._prompt(tokens), first)

    def _slices(self, tokens: list[int], first: int) -> Iterator[NDArray[np.float32]]:
        user, start = object(), 0
        while start < len(tokens):
            end = min(len(tokens), start + self._engine.batch, max(start, first) + LOGITS_AT_ONCE)
            wanted = max(0, end - max(start, first))
            for at in range(0, max(wanted, 1), SLICE):
                with self._turn:
                    if at == 0 or self._user is not user:
                        self._restore(user, tokens[:start])
                        logits = self._evaluate(tokens[start:end], wanted)
                    part = logits[at : at + SLICE].copy()  # the engine's own memory lasts until its next call
                if wanted:
                    yield part
            start = end

    def take_experts(self) -> dict[int, NDArray[np.int32]]:
        """Layer → chosen experts of the tokens evaluated since the last call, sorted ids, int32 [tokens, used].

        Empty for dense models and without `record_experts`. In the last layer an engine may leave out tokens
        whose logits were not wanted.
        """
        with self._turn:
            return self._engine.take_experts()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write what is evaluated, the last prompt and its answer, to a file that `load` reopens; how many tokens.

        Raises InputError where there is nothing, where the disk is full, or where another kind of file is there.
        """
        with self._turn:
            tokens, known = self._cached, self._known()
            if not tokens or self._engine.keep(len(tokens)) != len(tokens):
                raise InputError("nothing is evaluated that could be saved; ask something first")
            state.save(Path(path), known, tokens, self._engine)
            return len(tokens)

    def load(self, path: str | os.PathLike[str]) -> int:
        """Reopen what `save` wrote; how many tokens: a prompt that starts with them evaluates its rest alone.

        Raises InputError for another model, engine, version, number type of the cache or context, and for a damaged
        file; then nothing is evaluated. The checksum is no protection from who made the file: load your own.
        """
        with self._turn:
            known = self._known()
            self._cached, self._user = [], None  # as in `_evaluate`
            self._cached = state.load(Path(path), known, self._engine)
            return len(self._cached)

    def _known(self) -> state.Known:
        """What a saved state must fit."""
        if not self._files or self._vocabulary_only:
            raise InputError("this Session has no artifact to compute with, so it has no state")
        return state.Known(self._files.identity, self._engine.library, self._engine.kv, self.context)

    def _evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        """As `Engine.evaluate`. Nothing counts as cached until all went well: a fault inside may leave anything."""
        cached, self._cached = self._cached, []
        logits = self._engine.evaluate(tokens, wanted)
        self._files.check()
        cached += tokens
        self._cached = cached
        return logits

    def _restore(self, user: object, tokens: Sequence[int]) -> None:
        """Make the cache hold exactly `tokens`, from empty, unless `user` was the last one who used it."""
        if self._user is not user:
            self._rewind([])
            for start in range(0, len(tokens), self._engine.batch):
                self._evaluate(tokens[start : start + self._engine.batch], 0)
            self._user = user

    def _advance(
        self, user: object, tokens: list[int], cancelled: threading.Event | None = None
    ) -> tuple[NDArray[np.float32], int]:
        """Logits [vocab] of the last of `tokens`, and how many the cache held, which are not evaluated again."""
        start = len(self._cached) if self._user is user else self._rewind(tokens[:-1])
        self._user = user
        for at in range(start, len(tokens), self._engine.batch):
            if cancelled is not None and cancelled.is_set():
                raise CancelledError
            piece = tokens[at : at + self._engine.batch]
            logits = self._evaluate(piece, int(at + len(piece) == len(tokens)))
        last: NDArray[np.float32] = logits[0]
        if not np.isfinite(top := last.max()):  # NaN wins every maximum
            raise InputError(
                f"the model computed {top} in place of a number behind token {len(tokens)}, so no answer can be "
                f"chosen; {suspect(self._engine.kv)}"
            )
        return last, start

    def stream(self, prompt: str | Sequence[int] | Messages, options: Options | None = None) -> Stream:
        """Stream the answer to a text, to token ids or to the messages of a conversation, a chunk for each token.

        A text is tokenised with its control tokens; a prefix that is still cached is not evaluated again. Raises
        ContextLengthError for a prompt that leaves no room, InputError for options that mean nothing, and while it
        streams for logits that are no numbers.
        """
        if isinstance(prompt, str):
            return self._begin(self.tokenize(prompt), options)
        if len(prompt) and isinstance(prompt[0], Mapping):
            return self.chat(cast(Messages, prompt), options=options)
        return self._begin(cast(Sequence[int], prompt), options)

    def generate(self, prompt: str | Sequence[int] | Messages, options: Options | None = None) -> str:
        """The text of the answer; `stream` gives it as it comes, and tells why it ended."""
        return self.stream(prompt, options).read().text

    def chat(
        self,
        messages: Messages,
        tools: Messages | None = None,
        options: Options | None = None,
        *,
        sanitize_control_tokens: bool = False,
        **variables: Any,
    ) -> Stream:
        """Stream the next turn of a conversation. The arguments as for `tokenize_chat`, errors as `stream`.

        With `Options.shift` a conversation that is too long loses its oldest turns first, as `recent` does.
        """
        given_tools, tools = tools, calls.plain(tools)
        text, tokens = self._chat_tokens(messages, tools, sanitize_control_tokens, variables)
        given = len(tokens)
        if options and options.shift is not None:
            messages = self.recent(messages, tools, sanitize_control_tokens=sanitize_control_tokens, **variables)
            text, tokens = self._chat_tokens(messages, tools, sanitize_control_tokens, variables)
        reply = Reply(parsers(self._template(tools, variables), tools), given_tools, text)
        return self._begin(tokens, options, reply, gone=given - len(tokens))

    def recent(self, messages: Messages, tools: Messages | None = None, **how: Any) -> Messages:
        """A conversation without its oldest turns, where it fills the context; the arguments as for `tokenize_chat`."""

        def count(some: Messages) -> int:
            return len(self.tokenize_chat(some, tools, **how))

        return recent(messages, count(messages), self.context, count)

    def _begin(
        self, prompt: Sequence[int], options: Options | None, reply: Reply | None = None, *, gone: int = 0
    ) -> Stream:
        options = options or Options()
        options.check()
        self._files.check()
        sampling = options.sampling or self.sampling
        tokens = self._prompt(prompt, room=1, shift=options.shift)
        sampling.check(self.vocab)
        seed = secrets.randbelow(SEEDS) if options.seed is None else options.seed
        reply = reply or Reply((), None, "")
        constraint = self._constraint(options, reply)
        cancelled = threading.Event()
        given = tokens, Sampler(sampling, tokens, seed), options, cancelled, reply, constraint, gone
        return Stream(lambda session: answer(session, *given), self, tokens, cancelled, seed)

    def _constraint(self, options: Options, reply: Reply) -> Constraint | None:
        """What the options hold an answer to; None where it is free."""
        if not calls.held(options, reply):
            return None
        with self._turn:
            words = self._words()
        return calls.constraint(words, options, reply)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation by the artifact's own template, up to the assistant's turn.

        With `tools`, a template called "tool_use" goes before the others. `variables` are what the template can ask
        for, such as enable_thinking; `chat_template` names another. Raises InputError without one, or as it refuses.
        """
        template, named = self._template(tools, variables), {**self.special_tokens, **variables}
        return render(template, messages, tools, named, add_generation_prompt=add_generation_prompt)

    def _template(self, tools: Messages | None, variables: Mapping[str, Any]) -> str:
        return choose(self.chat_templates, tools=tools is not None, name=variables.get("chat_template"))

    def _rewind(self, tokens: Sequence[int]) -> int:
        """Keep the cached tokens that `tokens` starts with; returns how many."""
        cached, self._cached, self._user = self._cached, [], None  # as in `_evaluate`
        cached = self._stash.swap(self._engine, cached, tokens)
        kept = self._engine.keep(shared(cached, tokens))
        self._cached = cached[:kept]
        return kept

    def at_once(self, most: int) -> int:
        """How many answers can take turns, `most` at most, without evaluating anything again, whatever their length."""
        with self._turn:
            self._rewind([])
            return min(most, 1 + self._stash.limit // max(1, self._engine.state_limit(self.context)))

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        """The tokens as Python's integers, of a list or an array; refused where the vocabulary has no such token."""
        ids = [operator.index(t) for t in tokens]
        bad = next((t for t in ids if not 0 <= t < self.vocab), None)
        if bad is not None:
            raise wrong("prompt", f"token ids from 0 to {self.vocab - 1}", bad)
        return ids

    def _prompt(self, tokens: Sequence[int], room: int = 0, shift: int | None = None) -> list[int]:
        """As `_ids`; refused where the model cannot evaluate them, and `room` more, unless they may be shifted."""
        if self._vocabulary_only:
            raise InputError("this Session was opened with vocabulary_only, so it has no weights to compute with")
        ids = self._ids(tokens)
        if not ids:
            raise wrong("prompt", "at least one token", "none")
        check_shift(shift, self.context)
        if shift is None and len(ids) + room > self.context:
            most = self._engine.longest
            more = f"--context gives it up to {most}" if self.context < most else "the model was made for no more"
            full = ", which leaves none for an answer" if len(ids) == self.context else ""
            raise ContextLengthError(f"the prompt has {len(ids)} tokens, and the context {self.context}{full}; {more}")
        return ids

    def close(self) -> None:
        """Free the model, as dropping the Session does; every other method raises InputError from then on."""
        with self._turn:
            self._open = None
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open(path: str | os.PathLike[str], options: EngineOptions | None = None, *, target: str = DEFAULT) -> Session:
    """Open what `find_model` finds on a target, a file of `runtime/targets`: "cpu", and what is there beside it.

    Raises InputError when no engine claims the artifact, or when the engine refuses it.
    """
    options, began, found = options or EngineOptions(), time.perf_counter(), find_model(path)
    files = Opened(found, process_wide=options.process_wide)
    engine = open_engine(found, options, target)
    files.check()
    return Session(
        engine, vocabulary_only=options.vocabulary_only, load_seconds=time.perf_counter() - began, files=files,
        prompt_cache=options.prompt_cache,
    )  # fmt: skip
