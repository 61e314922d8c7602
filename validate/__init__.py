"""Drift: is an artifact still the same model as its reference? Numbers, their intervals and a verdict."""
