"""Perplexity of the candidate divided by the reference's."""

import numpy as np

from ._scores import Metric

METRIC = Metric("PPL ratio", lambda s: s.reference - s.candidate, np.exp, ideal=1.0)
