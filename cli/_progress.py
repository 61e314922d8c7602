"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from sampan.units import human

PLAIN_SECONDS = 10.0  # between two plain lines


class Progress:
    """Call it with the number of bytes done since the last call."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        self.start = self.last = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False, mininterval=0.2)

    def __call__(self, n: int) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif (now := time.monotonic()) - self.last >= PLAIN_SECONDS:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            share = f"{100 * self.done // self.total} %, {human(self.done)} of {human(self.total)}"
            print(
                f"{self.what}: {share}, {human(rate)}/s, {left:.0f} s left",
                file=sys.stderr,
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
