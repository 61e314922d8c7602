"""Threads answer: requests begin in the order in which they came; what a thread makes goes to the loop.

Where an engine has several lanes, each answer has a thread and a lane. Else one thread lets a few answers take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from sampan.errors import InputError

from ..lanes import Lanes
from ..session import Session
from ..stream import Chunk, Stream
from .refusals import RefusalError, refusal

LOG = logging.getLogger("sampan.server")
BROKEN = RefusalError(500, "internal error; the server's own log says more")
QUANTUM = 2.0  # seconds after which another answer has its turn; a change costs a copy of two caches
STOPPING = RefusalError(503, "the server is about to end; ask again later", None, "stopping")


class Turn:
    """One request: `begin` starts its answer in a worker's thread, `events` are for the loop that made it.

    What a reader does not take waits here, not in the engine: the context bounds it.
    """

    def __init__(self, begin: Callable[[Session], Stream]) -> None:
        self._begin, self._loop = begin, asyncio.get_running_loop()
        self._left = threading.Event()
        self.events: asyncio.Queue[Chunk | RefusalError | None] = asyncio.Queue()  # None: the client left
        self.stream: Stream | None = None
        self.seconds = 0.0  # of computing

    def cancel(self) -> None:
        """Nobody waits any more: end behind the token that is computed, or do not begin. For the loop's own thread."""
        self._left.set()
        self.events.put_nowait(None)
        if self.stream is not None:
            self.stream.cancel()

    def refuse(self, why: RefusalError) -> None:
        """Do not begin."""
        self._left.set()
        self._tell(why)

    @property
    def left(self) -> bool:
        """Whether nobody waits any more."""
        return self._left.is_set()

    def run(self, lanes: Lanes, pause: Callable[[], bool]) -> bool:
        """Answer until the end, or until `pause` after a token; whether it is the end. The last event tells of that."""
        try:
            if self.stream is None:
                self.stream = lanes.begin(self._begin)
                if self.left:  # since `cancel` looked for a stream
                    return self._end(lanes)
            for chunk in self.stream:
                self._tell(chunk)
                if pause():
                    return False
        except InputError as e:
            self._tell(refusal(e, begun=self.stream is not None))
        except Exception:
            LOG.exception("a request ended in a bug of ours")
            self._tell(BROKEN)
        return self._end(lanes)

    def _end(self, lanes: Lanes) -> bool:
        if self.stream is not None:
            self.stream.close()
            lanes.end(self.stream)
        return True

    def _tell(self, event: Chunk | RefusalError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everyone who waits
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker:
    """A thread for each lane, and the turns that wait for one. Where there is one, `at_once` are answered by turns."""

    def __init__(self, lanes: Lanes, at_once: int = 1) -> None:
        self._turns: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._lanes, self._at_once = lanes, at_once
        self._count = threading.Lock()
        self.running = 0  # turns that have begun
        self.mean = 1.0  # seconds of an answer, the last ones more than the first
        self._threads = [
            threading.Thread(target=self._work, name=f"sampan-answers-{n}", daemon=True)
            for n, _ in enumerate(lanes.sessions)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Turns that have not begun."""
        return self._turns.qsize()

    def add(self, turn: Turn) -> None:
        """Behind all that wait. For the loop's thread, as `stop`."""
        if self.stopping:
            turn.refuse(STOPPING)
        else:
            self._turns.put(turn)

    def _work(self) -> None:
        begun: deque[Turn] = deque()
        more, over = True, 0.0

        def pause() -> bool:
            """Whether somebody else could have a turn."""
            return time.monotonic() > over and (bool(begun) or (self._at_once > 1 and self._turns.qsize() > 0))

        while more or begun:
            while more and len(begun) < self._at_once and (self._turns.qsize() or not begun):
                more = self._begin(self._turns.get(), begun)
            if not begun:
                continue
            turn, began = begun.popleft(), time.monotonic()
            over = began + QUANTUM
            ended = turn.run(self._lanes, pause)
            turn.seconds += time.monotonic() - began
            if ended:
                with self._count:
                    self.running -= 1
                    self.mean += 0.1 * (turn.seconds - self.mean)
            else:
                begun.append(turn)

    def _begin(self, turn: Turn | None, begun: deque[Turn]) -> bool:
        if turn is None:
            return False
        if self.stopping:
            turn.refuse(STOPPING)
        elif not turn.left:
            begun.append(turn)
            with self._count:
                self.running += 1
        return True

    @property
    def stopping(self) -> bool:
        """Whether the server is about to end."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish what runs, refuse what waits."""
        self._stopping.set()
        with contextlib.suppress(queue.Empty):
            while True:
                if turn := self._turns.get_nowait():
                    turn.refuse(STOPPING)
        for _ in self._threads:
            self._turns.put(None)

    def join(self) -> None:
        """Wait for the threads."""
        for thread in self._threads:
            thread.join()
