"""4 bits with zero points; 8 bits where it hurts most: the head, and q, k, v and ffn_down in half of the layers.

The embedding has 8 bits where it serves as head.
"""

from ..scheme import Rule, Scheme
from ._llama import KEEP, head

MORE = Rule(r"attn_[qkv]\.weight$|ffn_down", "q8_0", layers="ends and thirds")

SCHEME = Scheme("u4_32z", None, (*KEEP, *head("q8_0"), MORE))
