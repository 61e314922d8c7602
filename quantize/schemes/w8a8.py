"""For Rockchip's NPUs: weights and activations of 8 bits, which Rockchip's compiler makes of float16."""

from ..scheme import Scheme

SCHEME = Scheme("w8", None)
