"""Run the float graphs of a written folder over the calibration text, and take the ranges of all activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError
from sampan.files import read_text
from sampan.static import EMBEDDING_FILE, TOKENS

from ...architecture import Architecture
from .centres import Centres
from .channels import Channels, DataFile
from .forms.static import Static
from .graph import FLOAT, Edge
from .qdq import Quantity, activations, constants
from .ranges import BINS, observe, quantities

if TYPE_CHECKING:
    from .npu import Part

TEXT = ("en.txt", "zh.txt", "code.txt", "maths.txt")  # of `sampan calibrate`
CALLS, EACH = 4, 2  # of 128 tokens in a row, and how often of each text
WEIGHT, COUNTED = 9, 14  # bytes of memory for a value of a weight, and for one whose bin is looked for


def measure(
    form: Static,
    weights: Channels,
    arch: Architecture,
    parts: Sequence[Part],
    data: Sequence[DataFile],
    positions: Mapping[str, NDArray[np.float32]],
    folder: Path,
    threads: int,
) -> tuple[dict[str, Quantity], Centres]:
    """Quantities of every activation of the graphs in `form`, from the weights as they are stored; centres of keys.

    `positions`: cos and sin of `reach(context)` positions. One layer is in memory at a time.
    """
    calls = _calls(form.context)
    embedding = np.memmap(folder / EMBEDDING_FILE, np.float16, "r").reshape(arch.vocab, arch.hidden)
    ids = encoded(folder, arch.vocab, calls, EACH)
    hidden = [[np.asarray(embedding[piece], np.float32) for piece in text] for text in ids]
    ranges, centres = observe(_by_layer(weights, arch, parts, data, calls), folder, hidden, positions, threads)
    return quantities(form.graphs, form, ranges), centres


def needs(weights: Channels, arch: Architecture, parts: Sequence[Part], data: Sequence[DataFile], context: int) -> int:
    """About how many bytes of memory `measure` takes: the largest layer with all that it computes, and all texts."""
    calls, most = _calls(context), 0
    for graph in _by_layer(weights, arch, parts, data, calls).graphs:
        known = constants(graph)
        values = sum(_size(e) for e in graph.edges if e.name in known and e.type == FLOAT)
        found = [_size(e) for e in activations(graph)]
        most = max(most, WEIGHT * values + 4 * sum(found) + COUNTED * max(found) + 8 * BINS * len(found))
    most += 2 * arch.vocab * arch.hidden  # the embedding, mapped
    return most + 4 * len(TEXT) * EACH * calls * TOKENS[0] * arch.hidden


def _size(edge: Edge) -> int:
    return math.prod(int(n) for n in edge.shape)


def _calls(context: int) -> int:
    """At least two: only from the second one on there is something in the cache."""
    return max(2, min(CALLS, context // TOKENS[0]))


def reach(context: int) -> int:
    """Positions that `measure` computes with: those of the context, and of all its calls."""
    return max(context, _calls(context) * TOKENS[0])


def _by_layer(
    weights: Channels, arch: Architecture, parts: Sequence[Part], data: Sequence[DataFile], calls: int
) -> Static:
    """The float graphs, one for each layer, over the weights where they lie."""
    from .npu import each_layer, static

    layers = each_layer(arch)
    lie = [next(d for d, p in zip(data, parts, strict=True) if layer.layers[0] in p.layers) for layer in layers]
    return static(weights, arch, TOKENS[0] * calls, TOKENS[0], lie, layers)


def encoded(folder: Path, vocab: int, calls: int, each: int, *, special: bool = False) -> list[list[NDArray[np.int64]]]:
    """Ids of the texts, 128 to a call, `each` times so many calls of every text. `special`: with the tokens that the
    tokenizer puts around a text.
    """
    import tokenizers

    try:
        tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:  # the package's exceptions have no common base
        raise InputError(f"tokenizer.json: the tokenizers package cannot read it: {e}") from None
    found: list[list[NDArray[np.int64]]] = []
    n = TOKENS[0] * calls
    for name in TEXT:
        text = read_text(Path(str(files("sampan.calibrate") / "texts" / name)))
        ids = np.array(tokenizer.encode(text, add_special_tokens=special).ids, np.int64)
        if ids.max(initial=0) >= vocab:
            raise InputError(f"tokenizer.json: token {ids.max()} is beyond the vocabulary of {vocab}")
        found += [list(part.reshape(calls, -1)) for part in np.resize(ids, n * each).reshape(each, n)]
    return found
