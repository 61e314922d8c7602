"""One thread answers, one request after the other in the order in which they came; what it makes goes to the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable

from sampan.errors import InputError

from ..stream import Chunk, Stream
from .refusals import RefusalError, refusal

LOG = logging.getLogger("sampan.server")
BROKEN = RefusalError(500, "internal error; the server's own log says more")
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

    def run(self) -> None:
        """Answer, in the worker's thread. Whatever happens, the last event ends the answer."""
        stream = None
        try:
            self.stream = stream = self._begin()
            if self.left:  # since `cancel` looked for a stream
                return
            for chunk in stream:
                self._tell(chunk)
        except InputError as e:
            self._tell(refusal(e) if stream is None else RefusalError(500, str(e)))
        except Exception:
            LOG.exception("a request ended in a bug of ours")
            self._tell(BROKEN)
        finally:
            if stream is not None:
                stream.close()

    def _tell(self, event: Chunk | RefusalError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everyone who waits
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker:
    """The thread, and the turns that wait for it."""

    def __init__(self) -> None:
        self._turns: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.running: Turn | None = None
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
        while (turn := self._turns.get()) is not None:
            if turn.left:
                continue
            if self.stopping:
                turn.refuse(STOPPING)
                continue
            began = time.monotonic()
            self.running = turn
            turn.run()
            self.running = None
            self.mean += 0.1 * (time.monotonic() - began - self.mean)

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
