"""Pass, fail or undecided: limits on the ends of the intervals.

A limit is passed when the worse end of the interval keeps it, failed when even the better end does not, and
undecided between the two; then more text would decide.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from sampan.errors import wrong

from .bootstrap import FEWEST
from .summary import MEAN
from .windows import STRIDE

Outcome = Literal["passed", "failed", "undecided"]
EACH = "each"

# Nominal bits from which the row holds → KLD, top-1, PPL ratio. Set by hand: a little worse than what good
# schemes reach on 1.5B parameters (docs/benchmarks.md), so that a broken one fails; smaller models drift more.
DEFAULTS = (
    (15.0, 0.002, 0.97, 1.01),
    (7.5, 0.005, 0.96, 1.02),
    (6.0, 0.01, 0.94, 1.03),
    (5.2, 0.03, 0.91, 1.05),
    (4.0, 0.1, 0.83, 1.15),
    (3.0, 0.3, 0.70, 1.4),
    (0.0, 1.0, 0.50, 3.0),
)
SIGN = {"kld": "≤", "top1": "≥", "ppl_ratio": "≤"}
RANGE = {"kld": (0.0, math.inf), "top1": (0.0, 1.0), "ppl_ratio": (0.0, math.inf)}


@dataclass(frozen=True, slots=True)
class Limit:
    """`domain`: a domain's name, `mean` of the domains, or `each` of them."""

    metric: str
    domain: str
    value: float


@dataclass(frozen=True, slots=True)
class Decision:
    """One limit on one domain. `tokens`: scored tokens that would decide, where undecided and known."""

    outcome: Outcome
    text: str
    tokens: int | None = None


def default_limits(nominal_bits: float) -> list[Limit]:
    """Limits on the mean of the domains for a model whose main number type has that many bits a value."""
    _, kld, top1, ratio = next(row for row in DEFAULTS if nominal_bits >= row[0])
    return [Limit("kld", MEAN, kld), Limit("top1", MEAN, top1), Limit("ppl_ratio", MEAN, ratio)]


def parse_limit(metric: str, option: str, text: str) -> Limit:
    """`0.05`, `zh=0.05` or `each=0.05`."""
    match = re.fullmatch(r"(?:(?P<domain>[^=]+)=)?(?P<value>[^=]+)", text)
    low, high = RANGE[metric]
    try:
        value = float(match["value"]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not low < value <= high or math.isinf(value):
        span = f"above {low:g}" if math.isinf(high) else f"above {low:g} and at most {high:g}"
        raise wrong(option, f"a number {span}, or DOMAIN=NUMBER", repr(text))
    return Limit(metric, match["domain"] or MEAN, value)


def expand(limits: list[Limit], domains: list[str]) -> list[Limit]:
    """`each` becomes one limit a domain; a domain that is not measured is refused."""
    out = []
    for limit in limits:
        if limit.domain not in (EACH, MEAN, *domains):
            raise wrong("limit", f"a domain among {', '.join([MEAN, EACH, *domains])}", repr(limit.domain))
        out += [Limit(limit.metric, d, limit.value) for d in (domains if limit.domain == EACH else [limit.domain])]
    return out


def decide(limit: Limit, numbers: dict[str, Any], title: str, domains: int, chunk: int = STRIDE) -> Decision:
    """One limit against `numbers`, the summary of its domain or of the mean of `domains`, in chunks of so many."""
    number = numbers[limit.metric]
    value, low, high = number["value"], number["low"], number["high"]
    what = f"{title} of {limit.domain if limit.domain != MEAN else 'the domain mean'}"
    if math.isnan(value):
        return Decision("failed", f"{what} is not a number: the candidate computes NaN or Inf")
    at_most = SIGN[limit.metric] == "≤"
    wanted = f"{SIGN[limit.metric]} {limit.value:g}"
    if low is None:
        return Decision(
            "undecided",
            f"{what} {value:.5g}, wanted {wanted}: fewer than {FEWEST} chunks in a domain, no interval",
            FEWEST * chunk * (domains if limit.domain == MEAN else 1),
        )
    worse, better = (high, low) if at_most else (low, high)
    span = f"{what} {value:.5g} [{low:.5g}, {high:.5g}]"
    if worse <= limit.value if at_most else worse >= limit.value:
        return Decision("passed", f"{span} {wanted}")
    if better > limit.value if at_most else better < limit.value:
        return Decision("failed", f"{span}, wanted {wanted}")
    distance = abs(value - limit.value)
    # the interval shrinks with the root of the number of tokens
    tokens = math.ceil(numbers["positions"] * (abs(worse - value) / distance) ** 2) if distance else None
    return Decision("undecided", f"{span}, wanted {wanted}", tokens)
