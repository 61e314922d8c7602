"""ONNX block types: ggml's own numbers, the scale search, layouts, padding, values that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sampan.errors import InputError
from sampan.quantize import decode_rows, encode_rows, number_type
from sampan.quantize.blocked import BLOCK_TYPES, STEPS


def values(rows: int = 24, columns: int = 256, seed: int = 5) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * rng.uniform(0.001, 2, (rows, 1))).astype(np.float32)


def encoded(name: str, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    out = np.empty(len(x) * BLOCK_TYPES[name].row_bytes(x.shape[1]), np.uint8)
    encode_rows(BLOCK_TYPES[name], x, out)
    return out


def decoded(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.empty_like(x)
    decode_rows(BLOCK_TYPES[name], encoded(name, x), out)
    return out


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_the_numbers_are_ggmls(name: str) -> None:
    x = values()
    kind = number_type(name)
    raw = np.empty(len(x) * kind.row_bytes(x.shape[1]), np.uint8)
    encode_rows(kind, x, raw)
    ggml = np.empty_like(x)
    decode_rows(kind, raw, ggml)
    assert np.array_equal(decoded(name, x), ggml)


def test_q8_0_is_ggmls_for_every_kind_of_value() -> None:
    """Halves, blocks of zeros, of numbers that are hardly any, and of very large ones."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4000, 64)).astype(np.float32) * np.exp2(rng.integers(-60, 20, (4000, 1))).astype(
        np.float32
    )
    x[:500] = rng.integers(-254, 255, (500, 64)) / np.float32(2)
    x[:500, ::32] = 127  # the scale is 1
    x[500:510] = 0
    kind, blocks = number_type("q8_0"), BLOCK_TYPES["q8_0"]
    raw = np.empty((len(x) * 2, kind.block_bytes), np.uint8)
    encode_rows(kind, x, raw.reshape(-1))
    ours = encoded("q8_0", x)
    codes, scales = ours[: x.size].reshape(-1, 32), ours[x.size :].reshape(-1, 2)
    assert blocks.width == 8 and np.array_equal(scales, raw[:, :2])
    assert np.array_equal(codes ^ 0x80, raw[:, 2:])


@pytest.mark.parametrize("name", ["u4_32", "u4_128"])
def test_no_step_alone_is_better_than_the_search(name: str) -> None:
    """Per block: at most the error of each scale peak / step with its nearest values."""
    x = values()
    block = BLOCK_TYPES[name].block
    blocks = x.reshape(-1, block)
    ours = np.square(blocks - decoded(name, x).reshape(-1, block)).sum(axis=1)
    peak = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    assert {-8.0, 7.0} < set(STEPS) and len(STEPS) >= 8
    for step in STEPS:
        scale = (peak / np.float32(step))[:, None]
        q = np.clip(np.rint(blocks / scale), -8, 7)
        plain = np.square(blocks - q * scale).sum(axis=1)
        assert np.all(ours <= plain * 1.01), step  # a stored scale is rounded to float16
        assert ours.sum() < plain.sum()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_layout_by_the_operators_description(name: str) -> None:
    """Values unpacked low bits first, one scale a block, packed zero points, all by plain loops."""
    kind, x = BLOCK_TYPES[name], values(3, 384)
    blocks = kind.blocks(384)
    raw = encoded(name, x).tobytes()
    sizes = [3 * b for b in kind.part_bytes(384)]
    starts = np.cumsum([0, *sizes])
    packed, scales = raw[: sizes[0]], np.frombuffer(raw[starts[1] : starts[2]], np.float16)
    zeros = raw[starts[2] :]
    out = np.empty_like(x)
    for n in range(3):
        for k in range(384):
            i, b = n * 384 + k, n * blocks + k // kind.block
            q = packed[i] if kind.width == 8 else packed[i // 2] >> (4 * (i % 2)) & 15
            zero = 1 << (kind.width - 1)
            if kind.zero_points:
                at = k // kind.block
                zero = zeros[n * (-(-blocks // 2)) + at // 2] >> (4 * (at % 2)) & 15
            out[n, k] = np.float32(int(q) - zero) * np.float32(scales[b])
    assert np.array_equal(out, decoded(name, x))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rows_that_no_block_divides_are_padded(name: str) -> None:
    x = values(5, 200)
    padded = np.pad(x, ((0, 0), (0, -200 % BLOCK_TYPES[name].block)))
    assert np.array_equal(decoded(name, x), decoded(name, padded)[:, :200])


def test_zero_points_serve_values_of_one_sign() -> None:
    x = np.abs(values()) + 1
    errors = {n: float(np.square(x - decoded(n, x)).mean()) for n in ("u4_32", "u4_32z", "u4_128", "u4_128z")}
    assert errors["u4_32z"] < 0.5 * errors["u4_32"] and errors["u4_128z"] < 0.5 * errors["u4_128"]


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_zeros_and_tiny_values_stay_finite(name: str) -> None:
    x = np.zeros((2, 128), np.float32)
    x[1] = np.float32(1e-42)
    assert not decoded(name, x).any()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_scale_beyond_float16_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a scale overflows float16"):
        encoded(name, np.full((1, 128), 1e9, np.float32))


def uneven(columns: int) -> NDArray[np.float32]:
    """Weights as real inputs have them: some columns count a hundred times more than others."""
    return np.exp(2 * np.random.default_rng(9).standard_normal(columns)).astype(np.float32)


def weighted(name: str, x: NDArray[np.float32], weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Encoded and decoded."""
    kind, out = BLOCK_TYPES[name], np.empty_like(x)
    raw = np.empty(len(x) * kind.row_bytes(x.shape[1]), np.uint8)
    encode_rows(kind, x, raw, weights)
    decode_rows(kind, raw, out)
    return out


@pytest.mark.everyday("u4_32", "u4_32z")
@pytest.mark.parametrize("name", ["u4_32", "u4_128", "u4_32z", "u4_128z"])
def test_weights_lessen_the_error_that_counts(name: str) -> None:
    """Against a search of every scale in float64, and against the encoding that knows no weights."""
    x, block = values(rows=16), BLOCK_TYPES[name].block
    w = uneven(x.shape[1]).astype(np.float64)

    def error(y: NDArray[np.float32]) -> float:
        return float((w * (x - y).astype(np.float64) ** 2).sum())

    with_, without = error(weighted(name, x, w.astype(np.float32))), error(weighted(name, x, None))
    best = 0.0
    for row in x.astype(np.float64):
        for at in range(0, x.shape[1], block):
            part, v = row[at : at + block], w[at : at + block]
            scales = np.abs(part).max() * np.linspace(0.05, 0.2, 600)
            scales = np.concatenate([scales, -scales])
            zeros = np.arange(16.0) if BLOCK_TYPES[name].zero_points else np.array([8.0])
            q = np.rint(part / scales[:, None, None]) + zeros[:, None]
            y = (np.clip(q, 0, 15) - zeros[:, None]) * scales[:, None, None]
            best += float((v * (part - y) ** 2).sum(-1).min())
    assert with_ < 0.93 * without
    assert best <= with_ * 1.0001 and with_ < 1.35 * best, (
        f"{with_ / best:.3f} of the best, {without / best:.3f} without"
    )


@pytest.mark.parametrize("name", ["u4_32", "u4_128z"])
def test_equal_weights_do_no_harm(name: str) -> None:
    """More is tried than without, and the padding of the last block counts for nothing."""
    x = values(columns=288)
    with_, without = (weighted(name, x, w) - x for w in (np.full(288, 0.25, np.float32), None))
    assert float((with_**2).sum()) <= 1.0001 * float((without**2).sum())


def test_q8_0_takes_no_weights() -> None:
    x = values()
    assert np.array_equal(weighted("q8_0", x, uneven(256)), weighted("q8_0", x, None))
    assert not BLOCK_TYPES["q8_0"].weighted and not number_type("q8_0").weighted and number_type("q4_k").weighted


def test_weighted_q4_0_is_ggmls() -> None:
    x, w, kind = values(), uneven(256), number_type("q4_0")
    raw, ggml = np.empty(len(x) * kind.row_bytes(256), np.uint8), np.empty_like(x)
    encode_rows(kind, x, raw, w)
    decode_rows(kind, raw, ggml)
    assert np.array_equal(weighted("q4_0", x, w), ggml) and not np.array_equal(weighted("q4_0", x, None), ggml)
