"""4 bits on a non-linear grid, 6-bit scales in blocks of 256: 4.25 bits per weight."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, OUT_8_EXPERTS, head

SCHEME = Scheme(
    "iq4_xs",
    30,
    (
        *KEEP,
        *head("q6_k"),
        *EIGHT_EXPERTS,
        *OUT_8_EXPERTS,
        Rule(r"attn_(v|qkv)\.weight$", "q5_k", when="gqa of 4 or more"),
        Rule(r"ffn_down", "q5_k", layers="first 1/8", when="without statistics"),
    ),
)
