"""2-bit k-quant, 3 and 4 bits where it hurts most."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, OUT_8_EXPERTS, WIDE_V, head

SCHEME = Scheme(
    "q2_k",
    10,
    (
        *KEEP,
        *head("q6_k"),
        *EIGHT_EXPERTS,
        *OUT_8_EXPERTS,
        *WIDE_V,
        Rule(r"attn_(v|qkv)\.weight$", "q4_k", when="gqa of 4 or more"),
        Rule(r"attn_(v|qkv)\.weight$", "q3_k"),
        Rule(r"ffn_down", "q3_k"),
        Rule(r"attn_output\.weight$", "q3_k"),
    ),
)
