"""compressed-tensors' configs: groups of modules, each with its weights' settings, and a list of plain modules.

Keys and defaults: quantization/quant_config.py, quant_scheme.py and quant_args.py of the compressed-tensors package
(0.20); names are matched as `match_name` in its utils/match.py does: `re:` patterns, else equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sampan.errors import brief, wrong

from ..config import Config
from ..patterns import matcher, named
from ..quantization import LINEAR, only, texts

TOP = (
    "quant_method", "config_groups", "format", "ignore", "quantization_status", "global_compression_ratio", "version",
    "kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config",
)  # fmt: skip
GROUP = ("targets", "weights", "input_activations", "output_activations", "format")
WEIGHTS = (
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder",
    "scale_dtype", "zp_dtype", "observer", "observer_kwargs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """One group's weights: `bits` and `type` of a code, and which values share a scale by `strategy`."""

    weights: Config
    bits: int
    type: str
    symmetric: bool
    strategy: str
    group_size: int  # -1: a whole row
    covers: Callable[[str], bool | None]


def read_group(config: Config, group: Config) -> Group:
    """The settings of one group; what could change the numbers and is not known is refused."""
    only(config, *TOP)
    only(group, *GROUP)
    weights = group.section("weights")
    only(weights, *WEIGHTS)
    config.is_default("quantization_status", "compressed", "frozen")
    config.is_default("moe_sparsity_config", {})
    for key, inner in (("sparsity_config", "format"), ("transform_config", "config_groups")):
        config.section(key).is_default(inner, "dense", {})
    weights.is_default("dynamic", False)
    weights.is_default("actorder", "weight", "static", False)  # these do not move columns
    size = weights.get("group_size")
    if size is not None and (type(size) is not int or size == 0 or not -1 <= size < 2**31):
        raise wrong(weights.at("group_size"), "values in a group, or -1", brief(size))
    strategy = weights.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
    return Group(
        weights,
        weights.natural("num_bits", default=8),
        str(weights.get("type") or "int"),
        weights.flag("symmetric", True),
        str(strategy),
        -1 if size is None else size,
        _covers(texts(group, "targets"), texts(config, "ignore"), group.at("targets"), config.at("ignore")),
    )


def _covers(targets: list[str], ignore: list[str], at: str, ignore_at: str) -> Callable[[str], bool | None]:
    plain, quantised = _matcher(ignore, ignore_at), _matcher([t for t in targets if t != "Linear"], at)
    linear = "Linear" in targets

    def covers(module: str) -> bool | None:
        if plain(module):
            return False
        if quantised(module) or (linear and LINEAR.fullmatch(module)):
            return True
        return None

    return covers


def _matcher(names: list[str], where: str) -> Callable[[str], bool]:
    matches = matcher([n.removeprefix("re:") for n in names if n.startswith("re:")], where)
    others = named(n for n in names if not n.startswith("re:"))
    return lambda module: others(module) or matches(module)
