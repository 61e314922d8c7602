"""A scheme chooses a number type for every tensor: a default and name-pattern rules, first match wins.

Schemes are data, one file each in `schemes/`. The llama.cpp schemes follow `llama_tensor_get_type` in
llama.cpp's src/llama-quant.cpp (without and with an importance matrix), proved tensor by tensor in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sampan.registry import load

from .types import NumberType, number_type


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What rules may ask about a tensor and its model. `columns` is the length of a row."""

    name: str
    dims: int
    columns: int
    layer: int  # -1 outside the blocks
    layers: int
    gqa: int  # query heads per key/value head
    experts: int
    tied: bool  # the embedding is the head too
    wide: bool  # the model that llama.cpp calls 70B, whose attn_v gets more bits
    stored: str  # one of KINDS
    weighted: bool = False  # there are statistics of its inputs, which llama.cpp calls an importance matrix


LAYERS: Mapping[str, Callable[[int, int], bool]] = {
    "all": lambda i, n: True,
    "first 2": lambda i, n: i < 2,
    "first 4": lambda i, n: i < 4,
    "first 1/8": lambda i, n: i < n // 8,
    "first 1/16": lambda i, n: i < n // 16,
    # llama.cpp's use_more_bits: the first and last eighth, and every third layer between
    "more bits": lambda i, n: i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2,
    # the same idea for models of few layers: at least one at each end
    "ends and thirds": lambda i, n: i < -(-n // 8) or i >= n - -(-n // 8) or (i - -(-n // 8)) % 3 == 1,
}

# How a checkpoint holds a weight. int4: symmetric, in blocks of 32; other int4: columns out of order, odd groups
KINDS = (
    "bf16", "f16", "f32", "fp8", "mxfp4", "nvfp4", "int4", "int4 with zeros by 32", "int4 with zeros by 128",
    "other int4", "mixed",
)  # fmt: skip


def _is_stored(kind: str, t: TensorFacts) -> bool:
    return t.stored == kind


CONDITIONS: Mapping[str, Callable[[TensorFacts], bool]] = {
    "always": lambda t: True,
    "tied": lambda t: t.tied,
    "gqa of 4 or more": lambda t: t.gqa >= 4,
    "8 experts": lambda t: t.experts == 8,
    "wide": lambda t: t.wide,
    "with statistics": lambda t: t.weighted,
    "without statistics": lambda t: not t.weighted,
    **{f"stored as {kind}": partial(_is_stored, kind) for kind in KINDS},
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose canonical name matches `pattern` (re.search) get `type`, in some layers or models."""

    pattern: str
    type: str
    layers: str = "all"
    when: str = "always"

    def applies(self, t: TensorFacts) -> bool:
        return (
            re.search(self.pattern, t.name) is not None
            and LAYERS[self.layers](t.layer, t.layers)
            and CONDITIONS[self.when](t)
        )


@dataclass(frozen=True, slots=True)
class Scheme:
    """`file_type` is llama.cpp's number for the scheme (`general.file_type`); None for one that it does not have.

    `native`: types follow what is stored, so every value is compared with its source.
    """

    default: str
    file_type: int | None
    rules: tuple[Rule, ...] = ()
    native: bool = False

    @property
    def types(self) -> set[str]:
        return {self.default, *(r.type for r in self.rules)}


# A type whose block does not divide the row falls back to one that may, and at last to f16.
FALLBACK = {
    "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl",
}  # fmt: skip


def choose_name(scheme: Scheme, t: TensorFacts) -> str:
    """The type's name for one tensor: vectors stay f32, then the first rule that applies, then the default."""
    if t.dims < 2:
        return "f32"
    rule = next((r for r in scheme.rules if r.applies(t)), None)
    return rule.type if rule else scheme.default


def choose_type(scheme: Scheme, t: TensorFacts) -> NumberType:
    """The number type for one tensor of a GGUF file: the chosen one, or what it falls back to for such rows."""
    chosen = number_type(choose_name(scheme, t))
    if t.columns % chosen.block:
        chosen = number_type(FALLBACK.get(chosen.name, "f16"))
    return chosen if t.columns % chosen.block == 0 else number_type("f16")


def get_scheme(name: str) -> Scheme:
    """The scheme in `schemes/<name>.py`."""
    scheme: Scheme = load("sampan.quantize.schemes", name, "SCHEME", "--quant")
    return scheme
