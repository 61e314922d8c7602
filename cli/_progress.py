"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from sampan.printable import printable
from sampan.units import human

from ._terminal import colours

PLAIN_SECONDS = 10.0  # between two plain lines


class Progress:
    """Call it with the amount done since the last call; `unit` is B for bytes, or a noun."""

    def __init__(self, total: int, what: str, unit: str = "B") -> None:
        self.total, self.what, self.unit, self.done = total, printable(what), unit, 0
        self.start = self.last = time.monotonic()
        self.bar: Any = None
        if colours():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, desc=self.what, unit=unit if unit == "B" else f" {unit}", unit_scale=unit == "B",
                leave=False, mininterval=0.2,
            )  # fmt: skip

    def __call__(self, n: int) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif self.done and (now := time.monotonic()) - self.last >= PLAIN_SECONDS:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            share = f"{100 * self.done // self.total} %, {self._amount(self.done)} of {self._amount(self.total)}"
            print(f"{self.what}: {share}, {self._speed(rate)}, {left:.0f} s left", file=sys.stderr)

    def _amount(self, n: float) -> str:
        return human(n) if self.unit == "B" else f"{n:.0f} {self.unit}{'' if n == 1 else 's'}"

    def _speed(self, rate: float) -> str:
        """Where one takes longer than a second, how long it takes."""
        return f"{1 / rate:.1f} s a {self.unit}" if rate < 1 and self.unit != "B" else f"{self._amount(rate)}/s"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
