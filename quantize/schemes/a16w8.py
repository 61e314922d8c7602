"""For NPUs: weights of 8 bits with a scale for each row, activations of 16."""

from ..scheme import Scheme

SCHEME = Scheme("w8", None)
