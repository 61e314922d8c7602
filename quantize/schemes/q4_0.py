"""4 bits, one float16 scale per 32 values."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

MORE = Rule(r"ffn_down", "q4_1", layers="first 1/8", when="with statistics")

SCHEME = Scheme("q4_0", 2, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS, MORE))
