"""Quantised checkpoints: what is read is what the codes mean, and the output is that of the plain checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import encoders
import pytest
from conftest import to_gguf

TINY = "qwen3-odd-blocks"

Pair = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def pair(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """`pair(encoding)` → the encoded checkpoint and the plain one with the same values."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            made[name] = encoders.encode(model(TINY), tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_the_output_is_that_of_the_values(name: str, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair(name)
    for quant in ("f32", "q8_0", "q4_k_m"):
        to_gguf(encoded, tmp_path / "encoded.gguf", quant)
        to_gguf(meant, tmp_path / "meant.gguf", quant)
        assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes(), quant
