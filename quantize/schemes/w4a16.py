"""For Rockchip's RK3576: weights of 4 bits in groups of 32, activations of float16; Rockchip's compiler makes them."""

from ..scheme import Scheme

SCHEME = Scheme("w4_32", None)
