"""The NPU of Rockchip's RK3588."""

from ..engines._rockchip import target

TARGET = target("rk3588")
