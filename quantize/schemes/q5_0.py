"""5 bits, one float16 scale per 32 values."""

from ..scheme import Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

SCHEME = Scheme("q5_0", 8, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS))
