"""Find texts in a stream of text that may break anywhere: what could still become one of them is held back."""

from __future__ import annotations

from collections.abc import Sequence


def held(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`, and no more than that."""
    longest = min(len(text), max(map(len, marks), default=1) - 1)
    for n in range(longest, 0, -1):
        end = text[-n:]
        if any(len(mark) > n and mark.startswith(end) for mark in marks):
            return n
    return 0


def find_first(text: str, marks: Sequence[str]) -> tuple[int, str]:
    """Where the first of `marks` stands in `text`, and which; −1 where none does. Of two at one place the longer."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    at, _, mark = min(found, default=(-1, 0, ""))
    return at, mark


class StopStrings:
    """Lets text through up to the first stop string, and nothing of that."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._kept = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """What of the text so far may be shown; sets `hit` where a stop string is complete."""
        if not self._stops:
            return text
        text = self._kept + text
        at, _ = find_first(text, self._stops)
        if self.hit or at >= 0:
            self.hit, self._kept = True, ""
            return text[: max(at, 0)]
        cut = len(text) - held(text, self._stops)
        self._kept = text[cut:]
        return text[:cut]

    def close(self) -> str:
        """What was held back, and is no stop string after all."""
        kept, self._kept = self._kept, ""
        return kept
