"""The checkpoint's quantization_config → rules, and every tensor as a stored weight with its companions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, brief, wrong
from sampan.files import read_json_if_there
from sampan.safetensors import TensorInfo

from .config import Config
from .encoding import Encoding, Part, Rule, StoredTensor, Tensors, encodings

KEY, MODELOPT = "quantization_config", "hf_quant_config.json"
# the modules that quantisers take unless told otherwise: linear layers of the blocks, the router not among them
LINEAR = re.compile(r"(.*\.)?\d+\..*(_proj|_proj_with_mqa|\.w[123])")
CODES = re.compile(r"\.(weight|weight_packed|qweight)$")
SCALE = re.compile(r"_scale(_inv|_2)?$")  # scales may be stored in the dtype of codes
ZERO_BIASES = "all-zero biases of modules that have none"
# Numbers of activations and of the cache: compressed-tensors' quantization/lifecycle/initialize.py, transformers'
# integrations/finegrained_fp8.py, modelopt's torch/export/quant_utils.py, AutoFP8's kv_scale
ASIDE = {
    re.compile(
        r"(.*\.)?(input|output)_(scale|global_scale|zero_point)|(.*[._])?activation_scale"
    ): "scales of activations",
    re.compile(r"(.*\.)?(q|k|v|kv)_(scale|zero_point)"): "scales of the KV cache",
}


def read_storage(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Every weight of the checkpoint by the name that families know; companions are part of their weight."""
    rules = read_rules(checkpoint)
    tensors = Tensors(checkpoint.tensors(), [s.name for s in checkpoint.shards])
    stored: dict[str, StoredTensor] = {}
    claimed: set[str] = set()
    for name, (_, info) in tensors.tensors.items():
        module = CODES.sub("", name)
        encoding = _encoding(name, module, info.dtype, rules)
        if encoding is None:
            continue
        if any(r.covers(module) is False for r in rules) and not any(r.covers(module) for r in rules):
            raise wrong(tensors.where(name), f"plain numbers, as {KEY} lists it", f"{encoding.name} codes")
        own = [r for r in rules if r.encoding is encoding]
        rule = next((r for r in own if r.covers(module)), own[0])
        assert encoding.open is not None  # noqa: S101 - only plain has none, and no rule names it
        weight = encoding.open(name, tensors, rule.scaling)
        stored[weight.name] = weight
        claimed.update(p.info.name for p in weight.parts)
    plain = encodings()["plain"]
    for name, (shard, info) in tensors.tensors.items():
        if name in claimed:
            continue
        if name in stored:
            raise wrong(tensors.where(name), f"one storage, {stored[name].main.info.name}", "two")
        rule_of = next((r for r in rules if r.covers(name.removesuffix(".weight"))), None)
        promised = rule_of.encoding.name if rule_of and len(info.shape) > 1 else ""
        aside = _aside(info, stored) if rules else ""
        stored[name] = StoredTensor(name, info.shape, plain, (Part(shard, info),), promised=promised, aside=aside)
    return stored


def _aside(info: TensorInfo, stored: Mapping[str, StoredTensor]) -> str:
    """What a plain tensor is that quantisers write beside the weights; empty for any other."""
    module, _, last = info.name.rpartition(".")
    weight = stored.get(f"{module}.weight")
    if last == "bias" and weight is not None and weight.encoding.zero_biases and info.shape == weight.shape[:1]:
        return ZERO_BIASES
    return next((what for pattern, what in ASIDE.items() if pattern.fullmatch(info.name)), "")


def _encoding(name: str, module: str, dtype: str, rules: Iterable[Rule]) -> Encoding | None:
    """The encoding whose codes this tensor is, by name and dtype; by its name alone, so that `open` can refuse it."""
    scale = SCALE.search(name) is not None
    named = [r for r in rules if (name.endswith(r.encoding.main) if r.encoding.main else not scale)]
    fitting = [r for r in named if dtype in r.encoding.dtypes] or [r for r in named if r.encoding.main]
    best = [r for r in fitting if r.covers(module)] or fitting
    return best[0].encoding if best else None


def read_rules(checkpoint: Checkpoint) -> tuple[Rule, ...]:
    """What quantization_config says, at the top or in text_config; an unknown method or setting is refused."""
    config = Config(checkpoint.config, str(checkpoint.folder / "config.json"))
    outer, inner = config.section(KEY), config.section("text_config").section(KEY)
    if outer.values and inner.values and outer.values != inner.values:
        raise wrong(inner.where, f"the same as {KEY} at the top", "another")
    chosen = outer if outer.values else inner
    if not chosen.values:
        chosen = _modelopt(checkpoint)
    if not chosen.values:
        return ()
    known = {f: e for e in encodings().values() for f in e.formats}
    method = chosen.get("quant_method")
    if method == "modelopt":
        algorithm = f"modelopt/{str(chosen.get('quant_algo')).lower()}"
        return (_rule(chosen, chosen, chosen.at("quant_algo"), algorithm, known),)
    if method != "compressed-tensors":
        return (_rule(chosen, chosen, chosen.at("quant_method"), method, known),)
    groups = chosen.section("config_groups")
    if not groups.values:
        raise wrong(groups.where, "groups of modules", "none")
    rules = []
    for key in groups.values:
        group = groups.section(key)
        format_ = group if group.get("format") is not None else chosen
        name = f"compressed-tensors/{format_.get('format')}"
        rules.append(_rule(chosen, group, format_.at("format"), name, known))
    return tuple(rules)


def _modelopt(checkpoint: Checkpoint) -> Config:
    """What older versions of modelopt wrote beside a config.json that says nothing, in the form of newer ones.

    Beside plain weights the file means nothing: transformers does not read it.
    """
    path = checkpoint.folder / MODELOPT
    if not any(info.dtype in ("F8_E4M3", "U8") for _, info in checkpoint.tensors().values()):
        return Config({}, str(path))
    section = Config(read_json_if_there(path), str(path)).section("quantization")
    return Config({**section.values, "quant_method": "modelopt"} if section.values else {}, section.where)


def _rule(config: Config, group: Config, where: str, name: object, known: Mapping[str, Encoding]) -> Rule:
    loaded = name is None and any(config.get(k) for k in ("load_in_4bit", "load_in_8bit"))  # as transformers reads it
    if name == "bitsandbytes" or loaded:
        raise InputError(
            f"{config.where}: weights of bitsandbytes are not read: load the model with transformers and save what "
            f"model.dequantize() makes of it; if the weights are plain already, delete {KEY} from config.json"
        )
    if name not in known:
        raise wrong(where, f"one of {', '.join(known)}", brief(name))
    read = known[str(name)].rule
    assert read is not None  # noqa: S101 - an encoding with formats has one
    return read(config, group)


def only(config: Config, *keys: str) -> None:
    """Refuse keys that nobody here knows: they might change the numbers."""
    other = next((k for k, v in config.values.items() if k not in keys and v is not None), None)
    if other is not None:
        raise wrong(config.where, f"only {', '.join(keys)}", brief(other))


def one_of(config: Config, names: Sequence[str], known: Sequence[str]) -> str:
    """A setting with several spellings, in lower case, the first of `known` by default; they must not disagree."""
    found = {n: config.get(n) for n in names if config.get(n) is not None}
    for name, value in found.items():
        if str(value).lower() not in known:
            raise wrong(config.at(name), " or ".join(known), brief(value))
    values = {str(v).lower() for v in found.values()}
    if len(values) > 1:
        pairs = " and ".join(f"{n} {brief(v)}" for n, v in found.items())
        raise InputError(f"{config.where}: {pairs} contradict each other; remove the wrong one")
    return values.pop() if values else known[0]


def texts(config: Config, key: str) -> list[str]:
    """A list of strings; absent is empty."""
    value = config.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise wrong(config.at(key), "a list of names", brief(value))
    return value


def covers(plain: Callable[[str], bool]) -> Callable[[str], bool | None]:
    """The usual rule: what `plain` tells is plain, linear layers of blocks are not, the rest may be either."""
    return lambda module: False if plain(module) else True if LINEAR.fullmatch(module) else None
