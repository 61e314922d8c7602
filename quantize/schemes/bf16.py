"""Matrices in bfloat16: exact for bfloat16 checkpoints."""

from ..scheme import Scheme
from ._llama import KEEP

SCHEME = Scheme("bf16", 32, KEEP)
