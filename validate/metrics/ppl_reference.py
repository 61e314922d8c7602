"""Perplexity of the reference: exp of the mean of −ln p."""

import numpy as np

from ._scores import Metric

METRIC = Metric("PPL ref.", lambda s: -s.reference, np.exp, ideal=None, digits=3)
