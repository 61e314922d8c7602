"""4 bits, float16 scale and minimum per 32 values."""

from ..scheme import Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

SCHEME = Scheme("q4_1", 3, (*KEEP, *head("q6_k"), *EIGHT_EXPERTS))
