"""Plain numbers in numpy against ggml's own kernels: every half, and float32 of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from sampan.quantize import ggml, plain
from sampan.quantize.types import number_type


def kinds_of_values() -> np.ndarray:
    """Any bits, every half with its neighbours in the middle (ties), the borders of the ranges."""
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 1 << 32, 300_000, np.uint64).astype(np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] + np.array([0, 1, 0x7FFF, 0x8000, 0x8001], np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    near = halves[:, None] + np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF], np.uint32)
    return np.concatenate([any_bits, ties.reshape(-1), near.reshape(-1)]).view(np.float32)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_bytes_are_ggmls(name: str) -> None:
    values = kinds_of_values()
    values = np.ascontiguousarray(values[np.isfinite(values)])
    kind = number_type(name)
    theirs, ours = (np.empty(values.size * kind.block_bytes, np.uint8) for _ in range(2))
    lib = ggml._library()
    lib.ggml_quantize_chunk(kind.id, values.ctypes.data, theirs.ctypes.data, 0, 1, values.size, None)
    finite = plain.encode(name, values, ours)
    assert np.array_equal(ours, theirs)
    assert finite == lib.ggml_validate_row_data(kind.id, theirs.ctypes.data, theirs.nbytes) == plain.valid(name, ours)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_half_is_decoded_as_by_ggml(name: str) -> None:
    data, kind = np.arange(1 << 16, dtype=np.uint16).view(np.uint8), number_type(name)
    ours, theirs = (np.empty((4, 1 << 14), np.float32) for _ in range(2))
    plain.decode(name, data, ours)
    ggml._library().ggml_get_type_traits(kind.id).contents.to_float(data.ctypes.data, theirs.ctypes.data, theirs.size)
    number = ~np.isnan(theirs)
    assert np.array_equal(ours[number].view(np.uint32), theirs[number].view(np.uint32))
    assert np.isnan(ours[~number]).all()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_what_is_not_finite_is_seen_wherever_it_stands(name: str, bad: float) -> None:
    for at in (0, plain.SLICE - 1, plain.SLICE, 2 * plain.SLICE + 4):
        values = np.ones(2 * plain.SLICE + 5, np.float32)
        out = np.empty(values.size * number_type(name).block_bytes, np.uint8)
        assert plain.encode(name, values, out) and plain.valid(name, out)
        values[at] = bad
        assert plain.encode(name, values, out) == (name == "f32" and bad == 3.4e38), "it rounds to infinity elsewhere"
