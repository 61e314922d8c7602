"""One thread answers: requests begin in the order in which they came, and a few take turns; what it makes goes to the
loop.
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

from ..stream import Chunk, Stream
from .refusals import RefusalError, refusal

LOG = logging.getLogger("sampan.server")
BROKEN = RefusalError(500, "internal error; the server's own log says more")
QUANTUM = 2.0  # seconds after which another answer has its turn; a change costs a copy of two caches
STOPPING = RefusalError(503, "the server is about to end; ask again later", None, "stopping")


class Turn:
    """One request: `begin` starts its answer in the worker, `events` are for the loop that made it.

    What a reader does not take waits here, not in the engine: the context bounds it.
    """

    def __init__(self, begin: Callable[[], Stream]) -> None:
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

    def run(self, pause: Callable[[], bool]) -> bool:
        """Answer until the end, or until `pause` after a token; whether it is the end. The last event tells of that."""
        try:
            if self.stream is None:
                self.stream = self._begin()
                if self.left:  # since `cancel` looked for a stream
                    return self._end()
            for chunk in self.stream:
                self._tell(chunk)
                if pause():
                    return False
        except InputError as e:
            self._tell(refusal(e) if self.stream is None else RefusalError(500, str(e)))
        except Exception:
            LOG.exception("a request ended in a bug of ours")
            self._tell(BROKEN)
        return self._end()

    def _end(self) -> bool:
        if self.stream is not None:
            self.stream.close()
        return True

    def _tell(self, event: Chunk | RefusalError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everyone who waits
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker:
    """The thread, and the turns that wait for it. Up to `at_once` of them are answered by turns."""

    def __init__(self, at_once: int = 1) -> None:
        self._turns: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._begun: deque[Turn] = deque()
        self._at_once = at_once
        self.running = 0  # turns that have begun
        self.mean = 1.0  # seconds of an answer, the last ones more than the first
        self._thread = threading.Thread(target=self._work, name="sampan-answers", daemon=True)
        self._thread.start()

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
        more = True
        while more or self._begun:
            while more and len(self._begun) < self._at_once and (self._turns.qsize() or not self._begun):
                more = self._begin(self._turns.get())
            if not self._begun:
                continue
            turn, began = self._begun.popleft(), time.monotonic()
            over = began + QUANTUM
            ended = turn.run(lambda over=over: time.monotonic() > over and self._others())  # type: ignore[misc]
            turn.seconds += time.monotonic() - began
            if ended:
                self.running -= 1
                self.mean += 0.1 * (turn.seconds - self.mean)
            else:
                self._begun.append(turn)

    def _others(self) -> bool:
        """Whether somebody else could have a turn."""
        return bool(self._begun) or (self._at_once > 1 and self._turns.qsize() > 0)

    def _begin(self, turn: Turn | None) -> bool:
        if turn is None:
            return False
        if self.stopping:
            turn.refuse(STOPPING)
        elif not turn.left:
            self._begun.append(turn)
            self.running += 1
        return True

    @property
    def stopping(self) -> bool:
        """Whether the server is about to end."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish what runs, refuse what waits."""
        self._stopping.set()
        self._turns.put(None)

    def join(self) -> None:
        """Wait for the thread."""
        self._thread.join()
