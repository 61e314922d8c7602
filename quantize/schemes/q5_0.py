"""5 bits, one float16 scale per 32 values."""

from ..scheme import Rule, Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

MORE = Rule(r"ffn_down", "q5_1", layers="first 1/8", when="with statistics")

SCHEME = Scheme("q5_0", 8, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS, MORE))
