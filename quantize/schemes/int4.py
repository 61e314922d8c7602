"""4 bits around zero in blocks of 32, each with the scale that fits it best. `int4` for ONNX."""

from ..scheme import Scheme
from ._llama import KEEP

SCHEME = Scheme("u4_32", None, KEEP)
