"""Everything in float32."""

from ..scheme import Scheme
from ._llama import KEEP

SCHEME = Scheme("f32", 0, KEEP)
