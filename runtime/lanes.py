"""Lanes: Sessions of one artifact, each with a cache of its own, whose next tokens llama.cpp computes together.

A processor waits for memory while it reads all weights for one token; tokens of several answers cost it little more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from sampan.errors import InputError
from sampan.units import human

from .engine import DEFAULT_CONTEXT, KV
from .machine import look, memory
from .memory import Need, need
from .session import Session
from .stash import shared
from .stream import Stream

MOST = 4  # that are opened where nobody says how many
SHARE = {"f32": 2.0, "q8_0": 34 / 64}  # of a cache's bytes in float16; q8_0: 32 values and a scale, ggml-common.h


def fitting(path: Path, context: int | None, kv: KV | None) -> int:
    """How many lanes this machine has memory for, MOST at most; 1 for what is no GGUF file."""
    available = memory(look()).available or 0
    for count in range(MOST, 1, -1) if path.is_file() else ():
        try:
            needed = need(path, context, count)
        except InputError:  # in several files, or the engine says what is wrong
            return 1
        if needed.total - needed.cache + _cache(needed, kv) <= available:
            return count
    return 1


def check(path: Path, context: int | None, kv: KV | None, count: int) -> None:
    """Raises InputError where the caches of so many lanes take more memory than is free: the system would end us.

    One lane of a usual context is not looked at, since that takes half a second.
    """
    if count == 1 and (context or 0) <= DEFAULT_CONTEXT:
        return
    try:
        needed = need(path, context, count)
    except (InputError, OSError):  # in several files, or the engine says what is wrong
        return
    cache, free = _cache(needed, kv), memory(look()).available
    if free is not None and cache > free:
        several = count > 1
        option = f"--parallel {count}" if several else f"--context {context}"
        caches = f"the cache{'s' * several} of {needed.context} tokens take{'s' * (not several)}"
        advice = f"give {'fewer, ' * several}a smaller --context, or --kv q8_0"
        raise InputError(f"{option}: {caches} {human(cache)}, and {human(free)} are free; {advice}")


def _cache(needed: Need, kv: KV | None) -> float:
    """Bytes of all caches, which `needed` counts in float16."""
    return needed.cache * SHARE.get(kv or "f16", 1.0)


def beside(session: Session) -> list[Session]:
    """Sessions of the other sequences of an engine that was opened with `EngineOptions.sequences`, none for others.

    Ask for them once, and close each. All of them keep other conversations in one place.
    """
    found = []
    for engine in getattr(session._engine, "lanes", list)():
        lane = Session(engine, load_seconds=session.load_seconds)
        lane._files, lane._stash, lane._words = session._files, session._stash, session._words
        found.append(lane)
    return found


class Lanes:
    """Sessions, and which of them are free. One alone answers all streams; of several each answers one at a time."""

    def __init__(self, session: Session) -> None:
        self.sessions = [session, *beside(session)]
        self._free = list(self.sessions)  # the one that was used last is the last
        self._taken: dict[Stream, Session] = {}
        self._lock = threading.Lock()

    def begin(self, begin: Callable[[Session], Stream]) -> Stream:
        """A stream on a free lane: on the one that has most of its prompt, and least else that would be forgotten."""
        stream = begin(next(iter(self._free), self.sessions[0]))
        if len(self.sessions) > 1:
            with self._lock:
                lane = max(self._free, key=lambda s: 2 * shared(s._cached, stream.prompt) - len(s._cached))
                self._free.remove(lane)
                self._taken[stream] = lane
            stream.move(lane)
        return stream

    def end(self, stream: Stream) -> None:
        """No more of this stream is asked for."""
        with self._lock:
            if stream in self._taken:
                self._free.append(self._taken.pop(stream))

    def close(self) -> None:
        """Close all Sessions but the one that was given."""
        for session in self.sessions[1:]:
            session.close()
