"""5 bits, float16 scale and minimum per 32 values."""

from ..scheme import Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

SCHEME = Scheme("q5_1", 9, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS))
