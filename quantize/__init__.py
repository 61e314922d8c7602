"""Number formats and schemes: how values become 4 or 8 bits."""

from .scheme import Rule, Scheme, TensorFacts, choose_type, get_scheme
from .types import NumberType, number_type

__all__ = ["NumberType", "Rule", "Scheme", "TensorFacts", "choose_type", "get_scheme", "number_type"]
