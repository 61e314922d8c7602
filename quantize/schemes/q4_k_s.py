"""4-bit k-quant, 5 bits in the first layers."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, OUT_8_EXPERTS, WIDE_V, head

SCHEME = Scheme(
    "q4_k",
    14,
    (
        *KEEP,
        *head("q6_k"),
        *EIGHT_EXPERTS,
        *OUT_8_EXPERTS,
        *WIDE_V,
        Rule(r"attn_(v|qkv)\.weight$", "q5_k", layers="first 4"),
        Rule(r"ffn_down", "q5_k", layers="first 1/8"),
    ),
)
