"""The numbers of drift: against torch in float64, and intervals against simulations with a known mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sampan.errors import InputError
from sampan.validate import bootstrap, summary, verdict
from sampan.validate.metrics._scores import Scores, score
from sampan.validate.windows import FEW, WINDOWS, cut


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 0.3, 3.0])
def test_scores_equal_an_independent_float64_computation(noise: float) -> None:
    """A KLD is a small difference of logarithms near 20, whose last bits (4e-15) are another processor's choice."""
    rng = np.random.default_rng(1)
    a = (rng.standard_normal((12, 30_000)) * 4 - 7).astype(np.float32)
    b = (a + rng.standard_normal(a.shape) * noise).astype(np.float32)
    following = rng.integers(0, a.shape[1], len(a))
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (a, b))
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    got = score(a, b, following)
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-9, atol=1e-13)
    assert got[:, 1].tolist() == (p.argmax(-1) == q.argmax(-1)).double().tolist()
    index = torch.from_numpy(following)[:, None]
    np.testing.assert_allclose(got[:, 2], p.gather(1, index)[:, 0], rtol=1e-12)
    np.testing.assert_allclose(got[:, 3], q.gather(1, index)[:, 0], rtol=1e-12)


def test_equal_logits_drift_by_nothing_and_nan_is_not_hidden() -> None:
    a = np.random.default_rng(2).standard_normal((3, 500)).astype(np.float32)
    assert score(a, a.copy(), np.array([1, 2, 3]))[:, :2].tolist() == [[0.0, 1.0]] * 3
    b = a.copy()
    b[1, 7] = np.nan
    assert np.isnan(score(a, b, np.array([1, 2, 3]))[:, 0]).tolist() == [False, True, False]


def test_metrics_are_what_their_names_say() -> None:
    p, q = np.array([[0.5, 0.2]]), np.array([[0.4, 0.3]])
    s = Scores(np.array([[0.1, 0.3]]), np.array([[1.0, 0.0]]), np.log(p), np.log(q))
    numbers = summary.summarise({"one": s, "two": s})["mean"]
    assert list(numbers)[2:] == ["kld", "top1", "rms_dp", "ppl_ratio", "ppl_candidate", "ppl_reference"]
    values = [numbers[m]["value"] for m in list(numbers)[2:]]
    perplexities = [float(np.exp(-np.log(x).mean())) for x in (q, p)]
    expected = [0.2, 0.5, 0.1, perplexities[0] / perplexities[1], *perplexities]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert numbers["kld"]["max"] == 0.3
    assert numbers["kld"]["low"] is None, "two chunks have no interval"


def simulated(rng: np.random.Generator, spread: float) -> Scores:
    """A domain of WINDOWS windows as models give them: skewed positions, with an effect of their window.

    The KLD is log-normal with mean 1; 95 of 100 tokens are the same; the log-odds of the token that follows are normal
    and move in proportion to √KLD.
    """
    shape, window = (WINDOWS, 128), rng.normal(0, 0.4, (WINDOWS, 1))
    kld = np.exp(window + rng.normal(0, spread, shape) - (0.4**2 + spread**2) / 2)
    same = (rng.random(shape) < 1 - 0.05 * np.exp(window - 0.4**2 / 2)).astype(np.float64)
    odds = window + rng.normal(0, 2, shape)
    moved = odds + rng.normal(-0.03, 0.3, shape) * np.sqrt(kld)
    return Scores(kld, same, -np.logaddexp(0, -odds), -np.logaddexp(0, -moved))


@pytest.mark.slow
@pytest.mark.parametrize("domains", [1, 4])
@pytest.mark.parametrize(
    ("metric", "spread"), [("kld", 1.0), ("kld", 1.5), ("top1", 1.0), ("rms_dp", 1.0), ("ppl_ratio", 1.0)]
)
def test_intervals_cover_the_truth_at_the_default_number_of_windows(metric: str, spread: float, domains: int) -> None:
    rng, made = np.random.default_rng(3), summary.metrics()[metric]
    big = [made.values(simulated(rng, spread)).mean() for _ in range(4000)]
    truth = float(made.finish(np.mean(big)))
    hits = 0
    for _ in range(600):
        chunks = [made.values(simulated(rng, spread)).mean(axis=1) for _ in range(domains)]
        low, high = bootstrap.interval(chunks, made.finish)
        hits += low <= truth <= high
    assert 0.92 <= hits / 600 <= 0.97


def test_a_paired_comparison_sees_what_separate_intervals_do_not() -> None:
    rng = np.random.default_rng(4)
    first = [simulated(rng, 1.5).kld.mean(axis=1) for _ in range(4)]
    second = [d * rng.normal(1.06, 0.05, len(d)) for d in first]
    mean = lambda x: x  # noqa: E731
    assert bootstrap.interval(first, mean)[1] > bootstrap.interval(second, mean)[0], "they overlap"
    ratio, low, high = bootstrap.ratio(first, second)
    assert low < ratio < high < 1
    assert bootstrap.ratio(first, first) == (1.0, 1.0, 1.0)


def numbers(value: float, low: float | None, high: float | None, positions: int = 4096) -> dict[str, object]:
    return {"positions": positions, "kld": {"value": value, "low": low, "high": high}}


@pytest.mark.parametrize(
    ("value", "low", "high", "outcome", "tokens"),
    [
        (0.01, 0.008, 0.02, "passed", None),
        (0.04, 0.031, 0.05, "failed", None),
        (0.025, 0.02, 0.035, "undecided", 4096 * 4),
        (0.01, None, None, "undecided", 15360),
        (float("nan"), None, None, "failed", None),
    ],
)
def test_a_limit_is_held_against_the_ends_of_the_interval(
    value: float, low: float | None, high: float | None, outcome: str, tokens: int | None
) -> None:
    decision = verdict.decide(verdict.Limit("kld", "mean", 0.03), numbers(value, low, high), "KLD", 4)
    assert decision.outcome == outcome
    assert decision.tokens == tokens or (tokens and abs(decision.tokens - tokens) < tokens * 0.01)


def test_limits_are_read_for_the_mean_a_domain_or_each() -> None:
    limits = [verdict.parse_limit("kld", "--max-kld", t) for t in ("0.1", "zh=0.2", "each=0.3")]
    expanded = verdict.expand(limits, ["zh", "en"])
    assert [(x.domain, x.value) for x in expanded] == [("mean", 0.1), ("zh", 0.2), ("zh", 0.3), ("en", 0.3)]
    with pytest.raises(InputError, match="limit: expected a domain among mean, each, en, found 'zh'"):
        verdict.expand(limits, ["en"])


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "nan", "inf", "a=b=1", "zh=", "1e999"])
def test_a_limit_that_makes_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="--max-kld: expected a number above 0, or DOMAIN=NUMBER, found"):
        verdict.parse_limit("kld", "--max-kld", text)
    with pytest.raises(InputError, match="--min-top1: expected a number above 0 and at most 1, or"):
        verdict.parse_limit("top1", "--min-top1", "1.5")


def test_every_position_of_the_second_halves_is_scored_once() -> None:
    domain = cut("en", range(1000), 32)
    assert [w[0] for w in domain.windows] == [0, 128, 256, 384, 512, 640]
    assert {len(w) for w in domain.windows} == {256}
    scored = [t for w in domain.windows for t in w[len(w) - domain.scored :]]
    assert scored == list(range(128, 128 * 7))
    few = cut("en", range(9000), FEW, short=True)
    assert (domain.chunk, few.chunk, len(few.windows)) == (128, 32, 8)
    assert few.scored * len(few.windows) // few.chunk >= bootstrap.FEWEST, "an interval, and so a verdict"
    long = cut("long_en", range(9000), 1)
    assert len(long.windows) == 1
    assert long.scored == len(long.windows[0]) - 128 == (9000 - 128) // 128 * 128
    with pytest.raises(InputError, match="text en: expected at least 256 tokens, found 255; give a longer text"):
        cut("en", range(255), 1)
