"""8 bits, one float16 scale per 32 values: 8.5 bits per weight. `int8` for GGUF."""

from ..scheme import Scheme
from ._llama import EIGHT_EXPERTS, KEEP, head

SCHEME = Scheme("q8_0", 7, (*KEEP, *head("q8_0"), *EIGHT_EXPERTS))
