"""Scales of int8 caches: what keys and values reach while the same graph with float32 caches reads a text.

The operator takes one scale for each channel of a head, the same for all tokens. Two channels that are rotated as a
pair get one scale, for the length of the pair: a text of a few hundred tokens turns slow pairs by a part of their
circle only, and a longer one would leave the range of each channel by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError
from sampan.extras import advice, installed
from sampan.static import TOKENS

from ...architecture import Architecture, Recurrent, Rope
from .calibration import CALLS, EACH, encoded

Floats = NDArray[np.float32]
PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
SCALE = re.compile(r"/layers\.\d+/attn/(key|value)/scale")
CODES = 127  # of int8, on either side of 0
LEAST = 2.0**-12  # of a cache's largest scale: a channel that the text left at 0 has one too


def check() -> None:
    """Raises InputError without what reads the text."""
    for package in ("onnxruntime", "tokenizers"):
        if installed(package) is None:
            raise InputError(f"--kv int8: {package} is needed to find the scales; {advice(package)}")


def scales(model: bytes, folder: Path, arch: Architecture, context: int, threads: int) -> dict[str, Floats]:
    """Initializer → scales, float32 [heads · width]. `model`: the graph with float32 caches, its data in `folder`."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session: Any = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    empty = {i.name: _empty(i.shape) for i in session.get_inputs() if i.name.startswith("past_")}
    caches = [n for n in empty if PAST.fullmatch(n)]
    present = [n.replace("past_key_values", "present") for n in caches]
    most: dict[str, Floats] = {}
    for text in encoded(folder, arch.vocab, max(1, min(CALLS, context // TOKENS[0])), EACH, special=True):
        ids = np.concatenate(text)[:context]
        mask = np.full((1, len(ids)), len(ids), np.int64)  # logits of the last position only
        found = session.run(present, {"input_ids": ids[None], "attention_mask": mask, **empty})
        for name, values in zip(caches, found, strict=True):
            reached = _lengths(values[0], _rope(arch, name)).max(axis=1)
            most[name] = np.maximum(most.get(name, reached), reached)
    if bad := [n for n, reached in most.items() if not np.isfinite(reached).all()]:
        raise InputError(f"{bad[0]}: it is no number while the calibration text is read, so it has no scale")
    return {_initializer(n): _scales(reached) for n, reached in most.items()}


def filled(model: Any, found: Mapping[str, Floats]) -> Any:
    """The graph `model`, of the onnx package, with its scales."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name in found:
            tensor.CopyFrom(numpy_helper.from_array(found[tensor.name], tensor.name))
    return model


def _empty(shape: Sequence[Any]) -> Floats:
    """A cache, or a state, before the first token."""
    return np.zeros([n if type(n) is int else 0 for n in shape], np.float32)


def _initializer(cache: str) -> str:
    """The scales of a graph's input, as forms/cpu.py names them."""
    layer, what = PAST.fullmatch(cache).groups()  # type: ignore[union-attr]
    return f"/layers.{layer}/attn/{what}/scale"


def _rope(arch: Architecture, cache: str) -> Rope | None:
    """How what lies in a cache is rotated."""
    layer, what = PAST.fullmatch(cache).groups()  # type: ignore[union-attr]
    attention = arch.blocks[int(layer)].attention
    return None if what == "value" or isinstance(attention, Recurrent) else attention.rope


def _lengths(values: Floats, rope: Rope | None) -> Floats:
    """|x| of [heads, tokens, width]; in place of two channels that are a pair the length of the pair."""
    found: Floats = np.abs(values)
    if rope is not None:
        half, n = rope.dims // 2, rope.dims
        first, second = (slice(0, n, 2), slice(1, n, 2)) if rope.interleaved else (slice(half), slice(half, n))
        found[..., first] = found[..., second] = np.hypot(found[..., first], found[..., second])
    return found


def _scales(reached: Floats) -> Floats:
    """Of [heads, width], flat; all one where nothing but zeros was seen."""
    scale = reached / np.float32(CODES)
    least = float(scale.max()) * LEAST or 1.0
    flat: Floats = np.maximum(scale, np.float32(least)).reshape(-1)
    return flat
