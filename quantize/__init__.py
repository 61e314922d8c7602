"""Number formats and schemes: how values become 4 or 8 bits."""

from .codec import TensorType, decode_rows, encode_rows, pack_integers, tensor_type
from .scheme import Rule, Scheme, TensorFacts, choose_name, choose_type, get_scheme
from .types import NumberType, number_type

__all__ = [
    "NumberType", "Rule", "Scheme", "TensorFacts", "TensorType", "choose_name", "choose_type", "decode_rows",
    "encode_rows", "get_scheme", "number_type", "pack_integers", "tensor_type",
]  # fmt: skip
