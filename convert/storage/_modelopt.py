"""modelopt's configs: one algorithm for all modules but those that are listed, in either of two forms.

`quantization_config` of config.json is flat; in `hf_quant_config.json`, which is read where config.json says nothing,
the same lies in `quantization`. Sources: TensorRT-Model-Optimizer's torch/export/quant_utils.py
(`process_layer_quant_config`, `get_quant_config`) and convert_hf_config.py.
"""

from __future__ import annotations

from collections.abc import Callable

from sampan.errors import InputError, brief, wrong

from ..config import Config
from ..patterns import wildcards
from ..quantization import covers, only, texts

# what the numbers depend on
KNOWN = (
    "quant_method", "quant_algo", "config_groups", "ignore", "exclude_modules", "group_size", "quantized_layers",
    "has_zero_point", "pre_quant_scale",
)  # fmt: skip
# who wrote it, and numbers of the cache
ABOUT = ("producer", "kv_cache_scheme", "kv_cache_quant_algo")
GROUP = ("targets", "weights", "input_activations")


def read_modelopt(config: Config, bits: int, size: int | None) -> Callable[[str], bool | None]:
    """Which modules have codes of `bits` in groups of `size`; what could change the numbers otherwise is refused."""
    only(config, *KNOWN, *ABOUT)
    config.is_default("has_zero_point", False)
    config.is_default("quantized_layers", {})
    config.is_default("group_size", size, 0)
    if config.flag("pre_quant_scale", False):
        raise InputError(f"{config.at('pre_quant_scale')}: factors of activations are not implemented")
    groups = config.section("config_groups")
    if len(groups.values) > 1:
        raise wrong(groups.where, "one group of modules", f"{len(groups.values)}")
    for key in groups.values:
        group = groups.section(key)
        only(group, *GROUP)
        weights = group.section("weights")
        only(weights, "num_bits", "type", "dynamic", "group_size")
        weights.is_default("num_bits", bits)
        weights.is_default("type", "float")
        weights.is_default("dynamic", False)
        weights.is_default("group_size", size, 0)
        if texts(group, "targets") not in ([], ["Linear"]):
            raise wrong(group.at("targets"), "Linear", brief(group.get("targets")))
    key = "ignore" if config.get("ignore") is not None else "exclude_modules"
    return covers(wildcards(texts(config, key), config.at(key)))
