"""Matrices in float16; a value beyond its range is refused."""

from ..scheme import Scheme
from ._llama import KEEP

SCHEME = Scheme("f16", 1, KEEP)
