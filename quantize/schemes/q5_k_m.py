"""5-bit k-quant, 6 bits where it hurts most."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

SCHEME = Scheme(
    "q5_k",
    17,
    (
        *KEEP,
        *head("q6_k"),
        *EIGHT_EXPERTS,
        Rule(r"attn_(v|qkv)\.weight$", "q6_k", layers="more bits"),
        Rule(r"ffn_down", "q6_k", layers="more bits"),
    ),
)
