"""For NPUs: weights of 4 bits in blocks of 32, 8 in the head, activations of 16."""

from ..scheme import Rule, Scheme

SCHEME = Scheme("w4_32", None, (Rule(r"^(output|token_embd)\.weight$", "w8"),))
