"""The end of a conversation that fits into a context: whole turns, the oldest ones left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

FULL, ROOMY = 7 / 8, 3 / 4  # of the context: beyond the first it is full, with the second there is room again

Messages = Sequence[Mapping[str, Any]]


def recent(messages: Messages, tokens: int, context: int, count: Callable[[Messages], int]) -> Messages:
    """The messages without their oldest turns, where their `tokens` fill more than seven eighths of the context.

    What stands in front of the first turn of a user stays, a system message say, and so does the last turn, fit or not.
    What goes fills half of the context, or two halves …: so a conversation that grows keeps the same beginning for a
    while, and with it what is evaluated of that. `count` tells the tokens of some messages.
    """
    starts = [i for i, m in enumerate(messages) if _asks(m) and not (i and _asks(messages[i - 1]))]
    if tokens <= FULL * context or len(starts) < 2:
        return messages

    def last(turns: int) -> Messages:
        return [*messages[: starts[0]], *messages[starts[-turns] :]]

    sizes: dict[int, int] = {}

    def size(turns: int) -> int:
        if turns not in sizes:
            sizes[turns] = count(last(turns))
        return sizes[turns]

    most = _most(lambda n: size(n) <= ROOMY * context, len(starts) - 1)
    half = max(context // 2, 1)
    left = tokens - half * -(-(tokens - size(most)) // half)
    return last(_most(lambda n: size(n) <= left, most) if size(1) <= left else most)


def _asks(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "user"


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest of 1 … `limit` that fits, or 1, where all below one that fits do; it looks at small ones first."""
    low, high = 1, 2
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
