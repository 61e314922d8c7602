"""Share of positions where both models put the same token first."""

from ._scores import Metric

METRIC = Metric("top-1", lambda s: s.same, ideal=1.0)
