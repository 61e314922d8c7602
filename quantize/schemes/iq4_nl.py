"""4 bits on a non-linear grid, one float16 scale per 32 values."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, OUT_8_EXPERTS, head

SCHEME = Scheme(
    "iq4_nl",
    25,
    (
        *KEEP,
        *head("q6_k"),
        *EIGHT_EXPERTS,
        *OUT_8_EXPERTS,
        Rule(r"attn_(v|qkv)\.weight$", "q5_k", when="gqa of 4 or more"),
        Rule(r"ffn_down", "q5_k", layers="first 1/8", when="without statistics"),
    ),
)
