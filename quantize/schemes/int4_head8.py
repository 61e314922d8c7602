"""`int4` with 8 bits in the output head, and in the embedding where it serves as head."""

from dataclasses import replace

from . import int4
from ._llama import KEEP, head

SCHEME = replace(int4.SCHEME, rules=(*KEEP, *head("q8_0")))
