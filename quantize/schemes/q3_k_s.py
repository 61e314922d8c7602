"""3-bit k-quant throughout."""

from ..scheme import Scheme
from ._llama import EIGHT_EXPERTS, KEEP, OUT_8_EXPERTS, WIDE_V, head

SCHEME = Scheme("q3_k", 11, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS, *OUT_8_EXPERTS, *WIDE_V))
