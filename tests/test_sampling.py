"""The sampler against transformers' processors, llama.cpp's penalties and torch."""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Any

import numpy as np
import pytest

from sampan.errors import InputError
from sampan.runtime import Sampling
from sampan.runtime.sampling import BLOCK, Sampler, candidates
from sampan.runtime.stream import most_probable

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 0.0], np.float32)
WIDE = 20_000  # words: several blocks


def draw(s: Sampling, prompt: list[int] | None = None) -> set[int]:
    return {Sampler(s, prompt or [], seed).choose(LOGITS) for seed in range(300)}


def test_steps() -> None:
    assert draw(Sampling()) == {1}
    assert draw(Sampling(temperature=1.0)) == {0, 1, 2, 3, 4}
    assert draw(Sampling(temperature=1.0, top_k=2)) == {1, 2}
    assert draw(Sampling(temperature=1.0, top_p=0.5)) == {1}
    assert draw(Sampling(temperature=1.0, top_p=0.7)) == {1, 2}
    assert draw(Sampling(temperature=1.0, min_p=0.1)) == {0, 1, 2}
    assert draw(Sampling(repetition_penalty=2.0), [1]) == {2}
    assert draw(Sampling(logit_bias={4: 100.0})) == {4}
    assert draw(Sampling(temperature=1e-30)) == {1}


def probabilities(logits: np.ndarray[Any, Any], s: Sampling) -> np.ndarray[Any, Any]:
    ids, weights = candidates(logits, s)
    found = np.zeros(len(logits))
    found[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return found


def theirs(logits: np.ndarray[Any, Any], s: Sampling) -> np.ndarray[Any, Any]:
    """The distribution by transformers' own steps, in float64."""
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.from_numpy(logits.astype(np.float64))[None]
    steps: list[Any] = [TemperatureLogitsWarper(s.temperature)]
    steps += [TopKLogitsWarper(s.top_k)] if s.top_k else []
    steps += [TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
    steps += [MinPLogitsWarper(s.min_p)] if s.min_p else []
    for step in steps:
        scores = step(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


SETTINGS = [
    Sampling(1.0), Sampling(0.3), Sampling(1.7, top_k=20), Sampling(0.7, top_p=0.8), Sampling(1.0, top_p=0.999),
    Sampling(1.0, min_p=0.05), Sampling(0.8, 40, 0.95, 0.02), Sampling(2.0, top_p=0.5, min_p=0.3), Sampling(1.0, 1),
    Sampling(5.0, top_p=0.9),
]  # fmt: skip


@pytest.mark.parametrize("s", SETTINGS, ids=str)
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_distribution_is_transformers(s: Sampling, spread: float) -> None:
    assert WIDE > 8 * BLOCK
    for seed in range(3):
        logits = np.random.default_rng(seed).standard_normal(WIDE, np.float32) * np.float32(spread)
        ours, expected = probabilities(logits, s), theirs(logits, s)
        apart = np.flatnonzero(((ours > 0) != (expected > 0)) & (ours + expected > 1e-12))
        assert len(apart) <= 1, "float32 and float64 may put the edge of the nucleus one token apart"
        assert np.abs(ours - expected).sum() < 1e-4


def test_draws_follow_the_weights() -> None:
    """Frequencies of every token within what chance allows, blocks and their edges included."""
    logits = np.full(4 * BLOCK + 3, -np.inf, np.float32)
    places = [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 4 * BLOCK - 1, 4 * BLOCK + 2]
    wanted = np.array([0.3, 0.05, 0.2, 0.1, 0.15, 0.08, 0.12])
    logits[places] = np.log(wanted)
    n, sampler = 40_000, Sampler(Sampling(1.0), [], 11)
    counts = Counter(sampler.choose(logits) for _ in range(n))
    assert set(counts) == set(places)
    found = np.array([counts[p] for p in places])
    chi = ((found - n * wanted) ** 2 / (n * wanted)).sum()
    assert chi < 22.5, "beyond 99.9 % of 6 degrees of freedom"


@pytest.mark.parametrize("penalties", [(1.3, 0, 0), (1, 0.4, 0), (1, 0, 1.5), (1.2, -0.3, 0.7)])
def test_penalties_are_llamas(penalties: tuple[float, float, float]) -> None:
    """Of an answer without a prompt: llama.cpp counts the prompt for all three."""
    from llama_cpp import llama_cpp as lib

    logits = np.random.default_rng(5).standard_normal(50).astype(np.float32) * 3
    ours = Sampler(Sampling(0, 0, 1, 0, *penalties), [], 0)
    chain = lib.llama_sampler_init_penalties(50, 64, *penalties)
    for _ in range(40):
        data = (lib.llama_token_data * 50)(*(lib.llama_token_data(i, float(x), 0.0) for i, x in enumerate(logits)))
        array = lib.llama_token_data_array(data, 50, -1, False)
        lib.llama_sampler_apply(chain, ctypes.byref(array))
        changed = ours._changed(logits) if ours._changes else logits
        np.testing.assert_allclose(changed, [d.logit for d in data], rtol=1e-5, atol=1e-6)
        lib.llama_sampler_accept(chain, ours.choose(logits))
    lib.llama_sampler_free(chain)


def test_the_repetition_penalty_counts_the_prompt_and_the_others_do_not() -> None:
    s = Sampling(repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=1.0, logit_bias={0: 0.5})
    sampler = Sampler(s, [1, 1, 3], 0)
    np.testing.assert_allclose(sampler._changed(LOGITS), [1.5, 1.5, 2, -2, 0])
    assert LOGITS[1] == 3, "the engine's own memory stays as it is"


def test_equal_logits_and_seed_give_equal_tokens() -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((30, WIDE)).astype(np.float32) * 3
    for s in SETTINGS:
        a, b = (Sampler(s, [1], 5) for _ in range(2))
        assert [a.choose(r) for r in rows] == [b.choose(r.copy()) for r in rows]


def test_logits_that_differ_a_little_choose_the_same_tokens() -> None:
    """By id, not by rank: an exchange of two ranks moves no border between tokens."""
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((200, 500)).astype(np.float32) * 3
    noise = rng.standard_normal(rows.shape).astype(np.float32) * 1e-4
    a, b = (Sampler(Sampling(1.0, top_p=0.95), [], 5) for _ in range(2))
    same = sum(a.choose(r) == b.choose(n) for r, n in zip(rows, rows + noise, strict=True))
    assert same >= 198


def test_log_probabilities_are_torchs() -> None:
    import torch

    def piece(token: int) -> bytes:
        return b"%d" % token

    logits = np.random.default_rng(9).standard_normal(300).astype(np.float32) * 5
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    best = np.argsort(-logits)[:4]
    logprob, top = most_probable(logits, 17, 4, piece)
    assert logprob == pytest.approx(expected[17], abs=1e-5)
    assert [(c.token, c.raw) for c in top] == [(i, b"%d" % i) for i in best]
    np.testing.assert_allclose([c.logprob for c in top], expected[best], atol=1e-5)
    assert most_probable(logits, 17, 0, piece) == (logprob, ()) and len(most_probable(logits, 17, 999, piece)[1]) == 300
    assert most_probable(logits, 17, None, piece) == (None, ())


@pytest.mark.parametrize(
    ("s", "message"),
    [
        (Sampling(temperature=float("nan")), "temperature: expected a number, found nan"),
        (Sampling(temperature=-1), "temperature: expected 0 or more, found -1"),
        (Sampling(repetition_penalty=0), "repetition_penalty: expected more than 0, found 0"),
        (Sampling(logit_bias={5: 1.0}), "logit_bias: expected token ids from 0 to 4, found 5"),
        (Sampling(logit_bias={2: float("-inf")}), "logit_bias: 2: expected a number, such as -100, found -inf"),
    ],
)
def test_what_means_nothing_is_refused(s: Sampling, message: str) -> None:
    with pytest.raises(InputError) as e:
        s.check(5)
    assert str(e.value) == message
