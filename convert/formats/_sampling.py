"""The sampling defaults of generation_config.json, checked once for every format."""

from __future__ import annotations

from pathlib import Path

from sampan.errors import brief, wrong
from sampan.files import read_json_if_there

MOST = 2**31 - 1  # what the formats' integers hold
KEYS = ("top_k", "top_p", "min_p", "temperature", "repetition_penalty")


def read_sampling(folder: Path) -> dict[str, int | float]:
    """Those of `KEYS` that the file sets: top_k as a whole number, the others as they stand there."""
    path = folder / "generation_config.json"
    generation, found = read_json_if_there(path), {}
    for key in KEYS:
        value = generation.get(key)
        if value is None:
            continue
        if type(value) not in (int, float) or not -MOST <= value <= MOST:
            raise wrong(f"{path}: {key}", "a number", brief(value))
        if key == "top_k" and value != int(value):
            raise wrong(f"{path}: {key}", "a whole number", brief(value))
        found[key] = int(value) if key == "top_k" else value
    return found
