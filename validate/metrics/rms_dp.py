"""Root mean square of Δp, the change of the probability of the token that follows."""

import numpy as np

from ._scores import Metric

METRIC = Metric("RMS Δp", lambda s: (np.exp(s.candidate) - np.exp(s.reference)) ** 2, np.sqrt)
