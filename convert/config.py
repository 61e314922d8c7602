"""Typed reading of `config.json`: every value is checked where it is read, and errors name the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sampan.errors import InputError, brief, wrong

from .architecture import Activation, LinearScaling, Llama3Scaling, Rope, YarnScaling


@dataclass(frozen=True, slots=True)
class Config:
    """A JSON object and where it stands. Several names for a key are spellings of different writers.

    `written`: keys that the object has under another name, see `spelled`.
    """

    values: Mapping[str, Any]
    where: str
    written: Mapping[str, str] = field(default_factory=dict)

    def get(self, *names: str) -> Any:
        """The value of that one of `names` that is set to something other than null, or None.

        Raises InputError where several are set, to different values.
        """
        found = {n: self.values[n] for n in names if self.values.get(n) is not None}
        first = next(iter(found), None)
        other = next((n for n in found if found[n] != found[first]), None) if first is not None else None
        if first is not None and other is not None:
            raise InputError(
                f"{self.where}: {first} is {brief(found[first])} and {other} is {brief(found[other])}, "
                "two names of one value; delete the wrong one"
            )
        return None if first is None else found[first]

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

    def spelled(self, names: Mapping[str, str]) -> Config:
        """The same with one writer's names of keys changed into ours; errors name the writer's.

        `names`: theirs → ours. Raises InputError where both are set, to different values.
        """
        values = {k: v for k, v in self.values.items() if k not in names}
        for theirs, ours in names.items():
            if theirs in self.values or ours in self.values:
                values[ours] = self.get(theirs, ours)
        return Config(values, self.where, {ours: theirs for theirs, ours in names.items() if theirs in self.values})

    def at(self, name: str) -> str:
        return f"{self.where}: {self.written.get(name, name)}"


def read_activation(config: Config) -> Activation:
    value = config.get("hidden_act")
    if value not in ("silu", "swish"):
        raise wrong(config.at("hidden_act"), "silu", brief(value))
    return "silu"


def read_rope(
    config: Config, dims: int, context: int, *, latent: bool, interleaved: bool = False, partial: bool = False
) -> Rope:
    """Old style: rope_theta and rope_scaling. Transformers 5: both inside rope_parameters, see `_rope_section`.

    `dims` of a head; `partial`: the config may say which share of them is rotated. `latent`: of latent
    attention, whose pairs are interleaved unless it says otherwise and whose yarn has an mscale.
    """
    scaling = _rope_section(config)
    theta = scaling if scaling.get("rope_theta") is not None else config
    if not partial:
        scaling.is_default("partial_rotary_factor", 1, 1.0)
        config.is_default("partial_rotary_factor", 1, 1.0)
    else:
        dims = _rotated(config, scaling, dims)
    if dims % 2:
        raise wrong(config.where, "an even number of rotated dimensions", dims)
    if latent:
        interleaved = config.flag("rope_interleave", True)
    return Rope(theta.number("rope_theta"), dims, _read_scaling(config, scaling, context, latent), interleaved)


def _rope_section(config: Config) -> Config:
    """rope_scaling where it says anything, else rope_parameters: so does transformers (`convert_rope_params_to_dict`).

    Beside a rope_scaling it forgets the other's rope_theta, which nobody means: what they disagree about is refused.
    """
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    for section in (old, new):
        if any(isinstance(v, dict) for v in section.values.values()):
            kinds = ", ".join(section.values)
            raise wrong(section.where, "one rope for all layers", brief(f"one for each of {kinds}"))
        section.get("rope_type", "type")
    if not (old.values and new.values):
        return old if old.values else new
    said = {
        k: v
        for k, v in new.values.items()
        if v is not None and (k, v) not in (("rope_type", "default"), ("type", "default"))
    }
    for key, value in said.items():
        names = ("rope_type", "type") if key in ("rope_type", "type") else (key,)
        found = old.get(*names)
        if found is None and key in ("rope_theta", "partial_rotary_factor"):
            found = config.get(key)
        if found != value:
            raise InputError(
                f"{config.where}: rope_parameters has {key} {brief(value)}, rope_scaling beside it "
                f"{'none' if found is None else brief(found)}; transformers reads rope_scaling alone: "
                "write it all there, or delete it"
            )
    return old


def _rotated(config: Config, scaling: Config, dims: int) -> int:
    """How many of a head's dimensions are rotated; scaling is understood for whole heads only."""
    share = scaling.number("partial_rotary_factor", default=config.number("partial_rotary_factor"))
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
        if scaling.get("factor") not in (None, 1, 1.0):
            raise wrong(scaling.at("rope_type"), "the kind of scaling that factor belongs to", brief(kind))
        return None
    if kind == "linear":
        return LinearScaling(scaling.number("factor"))
    if kind == "yarn":
        scaling.is_default("truncate", True)
        factor = scaling.number("factor")
        attention, all_dim = _read_mscale(scaling, factor, latent)
        original = config if config.get("original_max_position_embeddings") is not None else scaling  # as transformers
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
        original = config if config.get("original_max_position_embeddings") is not None else scaling
        trained = original.natural("original_max_position_embeddings", default=context)
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
