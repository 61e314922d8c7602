"""The NPU of Rockchip's RK3576."""

from ..engines._rockchip import target

TARGET = target("rk3576")
