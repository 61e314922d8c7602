"""Sizes as people write and read them."""

from __future__ import annotations

import re

from .errors import wrong

_FACTOR = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str, option: str) -> int:
    """Bytes from `600M`, `1.5G`, `512MiB` or a plain number; `option` names the place for the error."""
    m = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not m:
        raise wrong(option, "a size such as 600M, 2G or 512MiB", repr(text))
    unit = m[2].upper()
    factor = 1024 ** ("KMGT".index(unit) + 1) if m[3] and unit else _FACTOR[unit]
    return int(float(m[1]) * factor)


def human(n: float) -> str:
    """`1234567` → `1.23 MB` (decimal units, as disks and download pages use them)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.3g} {unit}" if n < 100 else f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.3g} TB" if n < 100 else f"{n:.0f} TB"
