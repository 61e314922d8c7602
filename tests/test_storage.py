"""Quantised checkpoints: what is read is what the codes mean, and the output is that of the plain checkpoint."""

from __future__ import annotations

from pathlib import Path

import encoders
import pytest
from conftest import Pair, to_gguf


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_the_output_is_that_of_the_values(name: str, pair: Pair, tmp_path: Path) -> None:
    encoded, meant = pair(name)
    for quant in ("f32", "q8_0", "q4_k_m"):
        to_gguf(encoded, tmp_path / "encoded.gguf", quant)
        to_gguf(meant, tmp_path / "meant.gguf", quant)
        assert (tmp_path / "encoded.gguf").read_bytes() == (tmp_path / "meant.gguf").read_bytes(), quant
