"""What a folder says of generating, as transformers' GenerationConfig reads it: the tokens that end, and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, brief
from .files import read_json_if_there, there

FILE = "generation_config.json"
ENDS = "eos_token_id"
ENDS_KEY = "sampan.tokenizer.end_tokens"  # of a GGUF file: every token that ends an answer, ids with commas
NAMES = {  # transformers' names → those of `general.sampling.*` in a GGUF file
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat",
}  # fmt: skip
MOST = 2**31 - 1  # what the formats' integers hold
TOP_K = 50  # of transformers, where it samples and nothing is said
INNER = ("decoder", "generator", "text_config")  # where a config keeps what a language model's config would say
UNKNOWN = {  # settings that change answers and that our sampler does not have, with the values that change nothing
    "num_beams": 1, "penalty_alpha": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None,
    "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "guidance_scale": 1, "bad_words_ids": None,
    "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "exponential_decay_length_penalty": None, "stop_strings": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Generation:
    """`ends` are token ids; `sampling` has the keys of `general.sampling.*`, `temp` 0 for greedy, and is empty where
    nothing is said; `left_out` names the settings that our sampler does not have.
    """

    ends: tuple[int, ...]
    sampling: dict[str, int | float]
    left_out: tuple[str, ...] = ()


def read_generation(folder: Path, vocab: int) -> Generation:
    """generation_config.json, and config.json where there is none or for the ends that it does not name."""
    path, model = folder / FILE, folder / "config.json"
    config = flat(read_json_if_there(model))
    settings = read_json_if_there(path)
    if not there(path):
        path, settings = model, config
    named, where = (config, model) if settings.get(ENDS) is None else (settings, path)
    return Generation(
        end_ids(named.get(ENDS), vocab, f"{where}: {ENDS}"),
        _sampling(settings, path),
        tuple(f"{k} {brief(v)}" for k, v in settings.items() if k in UNKNOWN and v not in (None, UNKNOWN[k], [])),
    )


def end_ids(value: Any, vocab: int, where: str) -> tuple[int, ...]:
    """The ids of an id, of a list of them or of null. Raises InputError for anything else."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < vocab for i in ids):
        raise InputError(f"{where}: expected token ids below {vocab}, found {brief(value)}")
    return tuple(dict.fromkeys(ids))


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json; what it leaves unsaid stands in its language model's own config."""
    inner: Mapping[str, Any] = next((config[k] for k in INNER if isinstance(config.get(k), Mapping)), {})
    return {**inner, **{k: v for k, v in config.items() if v is not None}}


def _sampling(settings: Mapping[str, Any], path: Path) -> dict[str, int | float]:
    found = {key: _number(settings.get(name), f"{path}: {name}", name) for name, key in NAMES.items()}
    said = {key: value for key, value in found.items() if value is not None}
    samples = settings.get("do_sample")
    if samples is not None and type(samples) is not bool:
        raise InputError(f"{path}: do_sample: expected true or false, found {brief(samples)}")
    if not said and samples is None:
        return {}
    if samples:
        return {"temp": 1.0, "top_k": TOP_K} | said
    return said | {"temp": 0.0}


def _number(value: Any, where: str, name: str) -> int | float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not -MOST <= value <= MOST:
        raise InputError(f"{where}: expected a number, found {brief(value)}")
    if name == "top_k":
        if value != int(value):
            raise InputError(f"{where}: expected a whole number, found {value}")
        return max(0, int(value))
    if value < 0 or (name == "repetition_penalty" and value == 0) or (name == "min_p" and value > 1):
        raise InputError(f"{where}: expected {_RANGES[name]}, found {value}")
    return min(1.0, float(value)) if name == "top_p" else float(value)


_RANGES = {
    "temperature": "0 or more", "top_p": "a number from 0 to 1", "min_p": "a number from 0 to 1",
    "repetition_penalty": "more than 0",
}  # fmt: skip
