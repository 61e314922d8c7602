"""3-bit k-quant, 4 and 5 bits where it hurts most."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, OUT_8_EXPERTS, WIDE_V, head

SCHEME = Scheme(
    "q3_k",
    12,
    (
        *KEEP,
        *head("q6_k"),
        *EIGHT_EXPERTS,
        *OUT_8_EXPERTS,
        *WIDE_V,
        Rule(r"attn_(v|qkv)\.weight$", "q5_k", layers="first 2"),
        Rule(r"attn_(v|qkv)\.weight$", "q4_k"),
        Rule(r"ffn_down", "q5_k", layers="first 1/16"),
        Rule(r"ffn_down", "q4_k"),
        Rule(r"attn_output\.weight$", "q4_k"),
    ),
)
