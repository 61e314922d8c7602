"""Typed reading of `config.json`: every value is checked where it is read, and errors name the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sampan.errors import brief, wrong

from .architecture import Activation, LinearScaling, Llama3Scaling, Rope, YarnScaling


@dataclass(frozen=True, slots=True)
class Config:
    """A JSON object and where it stands. Several names for a key are spellings of different writers."""

    values: Mapping[str, Any]
    where: str

    def get(self, *names: str) -> Any:
        """The first of `names` that is set to something other than null, or None."""
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def natural(self, *names: str, default: int | None = None, least: int = 1, limit: int = 2**31) -> int:
        """A whole number from `least` to `limit`."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value <= limit:
            raise wrong(self.at(names[0]), f"a whole number from {least} to {limit}", brief(value))
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """A finite positive number."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise wrong(self.at(names[0]), "a positive number", brief(value))
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise wrong(self.at(name), "true or false", brief(value))
        return value

    def is_default(self, name: str, *harmless: object) -> None:
        """Refuse a key whose value would change the model in a way that is not implemented."""
        value = self.get(name)
        if value is not None and value not in harmless:
            raise wrong(self.at(name), " or ".join(map(repr, harmless)) or "none", brief(value))

    def section(self, name: str) -> Config:
        """A nested object; absent or null is an empty one."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise wrong(self.at(name), "an object", brief(value))
        return Config(value or {}, self.at(name))

    def at(self, name: str) -> str:
        return f"{self.where}: {name}"


def read_activation(config: Config) -> Activation:
    value = config.get("hidden_act")
    if value not in ("silu", "swish"):
        raise wrong(config.at("hidden_act"), "silu", brief(value))
    return "silu"


def read_rope(
    config: Config, dims: int, context: int, *, latent: bool, interleaved: bool = False, rotated: float | None = None
) -> Rope:
    """Old style: rope_theta and rope_scaling. Transformers 5: both inside rope_parameters.

    `dims` of a head; `rotated`: which share of them by default, None for all and no other. `latent`: of latent
    attention, whose pairs are interleaved unless it says otherwise and whose yarn has an mscale.
    """
    parameters = config.section("rope_parameters")
    scaling = parameters if parameters.values else config.section("rope_scaling")
    if any(isinstance(v, dict) for v in parameters.values.values()):
        kinds = ", ".join(parameters.values)
        raise wrong(parameters.where, "one rope for all layers", brief(f"one for each of {kinds}"))
    theta = scaling if scaling.get("rope_theta") is not None else config
    if rotated is None:
        scaling.is_default("partial_rotary_factor", 1, 1.0)
        config.is_default("partial_rotary_factor", 1, 1.0)
    else:
        dims = _rotated(config, scaling, dims, rotated)
    if dims % 2:
        raise wrong(config.where, "an even number of rotated dimensions", dims)
    if latent:
        interleaved = config.flag("rope_interleave", True)
    return Rope(theta.number("rope_theta"), dims, _read_scaling(config, scaling, context, latent), interleaved)


def _rotated(config: Config, scaling: Config, dims: int, default: float) -> int:
    """How many of a head's dimensions are rotated; scaling is understood for whole heads only."""
    share = scaling.number("partial_rotary_factor", default=config.number("partial_rotary_factor", default=default))
    part = dims * share
    if share > 1 or part != int(part):
        raise wrong(config.at("partial_rotary_factor"), f"a share of {dims} dimensions", share)
    if part < dims:
        scaling.is_default("rope_type", "default")
        scaling.is_default("type", "default")
    return int(part)


def _read_scaling(
    config: Config, scaling: Config, context: int, latent: bool
) -> LinearScaling | YarnScaling | Llama3Scaling | None:
    kind = scaling.get("rope_type", "type")
    if kind in (None, "default"):
        if scaling.get("factor") is not None:
            raise wrong(scaling.at("rope_type"), "the kind of scaling that factor belongs to", brief(kind))
        return None
    if kind == "linear":
        return LinearScaling(scaling.number("factor"))
    if kind == "yarn":
        scaling.is_default("truncate", True)
        factor = scaling.number("factor")
        attention, all_dim = _read_mscale(scaling, factor, latent)
        original = scaling if scaling.get("original_max_position_embeddings") is not None else config
        return YarnScaling(
            factor=factor,
            original_context=original.natural("original_max_position_embeddings", default=context),
            attention_factor=attention,
            beta_fast=scaling.number("beta_fast", default=32.0),
            beta_slow=scaling.number("beta_slow", default=1.0),
            mscale_all_dim=all_dim,
        )
    if kind == "llama3":
        low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
        if high <= low:
            raise wrong(scaling.at("high_freq_factor"), f"more than low_freq_factor {low:g}", high)
        trained = scaling.natural("original_max_position_embeddings")
        return Llama3Scaling(scaling.number("factor"), trained, low, high)
    raise wrong(scaling.at("rope_type"), "default, linear, yarn or llama3", brief(kind))


def _read_mscale(scaling: Config, factor: float, latent: bool) -> tuple[float | None, float]:
    """Attention factor and mscale_all_dim; DeepSeek's code and transformers agree only where both mscales stand."""
    attention = None if scaling.get("attention_factor") is None else scaling.number("attention_factor")
    mscales = [k for k in ("mscale", "mscale_all_dim") if scaling.get(k) is not None]
    if not mscales:
        return attention, 0.0
    if not latent or attention is not None or len(mscales) == 1:
        raise wrong(
            scaling.at(mscales[0]), "none" if not latent else "mscale and mscale_all_dim without attention_factor",
            brief(scaling.get(mscales[0])),
        )  # fmt: skip
    one, all_dim = scaling.number("mscale"), scaling.number("mscale_all_dim")
    return yarn_mscale(factor, one) / yarn_mscale(factor, all_dim), all_dim


def yarn_mscale(factor: float, mscale: float) -> float:
    """DeepSeek's magnitude of a context `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def refuse_windows(config: Config, layers: int, context: int) -> None:
    """Sliding-window attention is not implemented: accepted only where it is off or as wide as the context."""
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise wrong(config.at("layer_types"), f"a list of {layers}", brief(kinds))
        other = next((k for k in kinds if k != "full_attention"), None)
        if other is not None:
            raise wrong(config.at("layer_types"), "full_attention in every layer", brief(other))
    window = config.get("sliding_window")
    if config.flag("use_sliding_window", False) and window is not None and kinds is None:
        first = config.get("max_window_layers")
        applies = not isinstance(first, int) or first < layers
        if applies and (not isinstance(window, int) or window < context):
            raise wrong(config.at("use_sliding_window"), "false", f"true with a window of {brief(window)}")
