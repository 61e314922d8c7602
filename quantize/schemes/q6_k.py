"""6-bit k-quant."""

from ..scheme import Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

SCHEME = Scheme("q6_k", 18, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS))
