"""4-bit k-quant, 6 bits where it hurts most. `int4` for GGUF."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, OUT_8_EXPERTS, WIDE_V, head

SCHEME = Scheme(
    "q4_k",
    15,
    (
        *KEEP,
        *head("q6_k"),
        *EIGHT_EXPERTS,
        *OUT_8_EXPERTS,
        Rule(r"attn_(v|qkv)\.weight$", "q6_k", layers="more bits"),
        *WIDE_V,
        Rule(r"ffn_down", "q6_k", layers="more bits"),
    ),
)
