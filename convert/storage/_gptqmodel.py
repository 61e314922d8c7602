"""What configs of GPTQ and AWQ checkpoints share: GPTQModel writes both, and transformers reads both as one kind.

Sources: GPTQModel's quantization/config.py (`to_dict` in 2.2, 4.2, 5.0, 5.6, 6.0 and 7.3; `dynamic_get`), `GPTQConfig`
in transformers' utils/quantization_config.py.
"""

from __future__ import annotations

from collections.abc import Callable

from sampan.errors import InputError, brief, wrong

from ..config import Config
from ..patterns import matcher
from ..quantization import only

# what the numbers depend on
KNOWN = (
    "quant_method", "method", "bits", "group_size", "sym", "desc_act", "checkpoint_format", "format", "pack_dtype",
    "lm_head", "dynamic", "adapter", "rotation",
)  # fmt: skip
# how the codes were found, and what runtimes make of them
ABOUT = (
    "dataset", "tokenizer", "damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "meta",
    "model_name_or_path", "model_file_base_name", "use_cuda_fp16", "model_seqlen", "block_name_to_quantize",
    "module_name_preceding_first_block", "batch_size", "pad_token_id", "use_exllama", "max_input_length",
    "exllama_config", "cache_block_outputs", "disable_exllama", "mse", "act_group_aware", "quantizer", "uri", "device",
    "pack_impl", "offload_to_disk", "offload_to_disk_path", "gc_mode", "fallback", "failsafe", "gptaq", "foem",
    "hessian", "hyb_act", "v2", "v2_alpha", "mock_quantization", "wait_for_submodule_finalizers",
    "auto_forward_data_parallel", "vram_strategy", "dense_vram_strategy", "dense_vram_strategy_devices",
    "moe_vram_strategy", "moe_vram_strategy_devices", "moe", "scale_search_chunked_activations",
)  # fmt: skip


def check(config: Config, method: str, known: tuple[str, ...], about: tuple[str, ...]) -> int:
    """Refuse keys that nobody knows and settings that are not implemented; returns values in a group, 0 for a row."""
    only(config, *KNOWN, *known, *ABOUT, *about)
    if config.natural("bits", "w_bit") != 4:
        raise wrong(config.at("bits"), "4", config.get("bits", "w_bit"))
    config.is_default("method", method)
    config.is_default("pack_dtype", "int32", "torch.int32")
    config.is_default("adapter", {})
    if config.get("rotation") is not None:
        raise InputError(f"{config.at('rotation')}: weights that were rotated are not implemented")
    size = config.get("group_size", "q_group_size")
    if type(size) is not int or not (size == -1 or 0 < size < 2**31):
        raise wrong(config.at("group_size"), "values in a group, or -1", brief(size))
    return max(0, size)


def dynamic_plain(config: Config) -> Callable[[str], bool]:
    """GPTQModel's `dynamic`: expressions with settings for some modules, or with a `-:` before those that stay plain;
    the first that matches counts. Settings that change numbers are refused unless all modules have the same.
    """
    dynamic = config.section("dynamic")
    runs: list[tuple[bool, list[str]]] = []
    for key, value in dynamic.values.items():
        plain = key.startswith("-:")
        if not plain and not isinstance(value, dict):
            raise wrong(dynamic.at(brief(key)), "an object", brief(value))
        for name, setting in () if plain else value.items():
            if name not in ABOUT and setting != config.get(name):
                raise wrong(dynamic.where, "the same settings for all modules", brief(f"{key}: {value}"))
        if not runs or runs[-1][0] != plain:
            runs.append((plain, []))
        runs[-1][1].append(key if key[:2] not in ("-:", "+:") else key[2:])
    matchers = [(plain, matcher(patterns, dynamic.where)) for plain, patterns in runs]
    return lambda module: next((plain for plain, matches in matchers if matches(module)), False)
