"""Tables that line up, also where names are Chinese."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from .printable import printable


def table(rows: Sequence[Sequence[object]], right: str = "") -> str:
    """Rows of cells, made printable, as aligned text; columns whose letters stand in `right` (a, b, …) align right."""
    cells = [[printable(c) for c in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        parts = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - _width(cell))
            parts.append(gap + cell if "abcdefghijkl"[i] in right else cell + gap)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
