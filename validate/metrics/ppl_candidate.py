"""Perplexity of the candidate: exp of the mean of −ln p."""

import numpy as np

from ._scores import Metric

METRIC = Metric("PPL cand.", lambda s: -s.candidate, np.exp, ideal=None, digits=3)
