"""5-bit k-quant throughout."""

from ..scheme import Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

SCHEME = Scheme("q5_k", 16, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS))
