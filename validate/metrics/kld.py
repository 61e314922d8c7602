"""Kullback-Leibler divergence KL(reference ‖ candidate), in nats a token."""

from ._scores import Metric

METRIC = Metric("KLD", lambda s: s.kld, digits=5)
