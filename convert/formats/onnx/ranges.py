"""Ranges of activations: what a static graph's edges hold while it reads a text, layer by layer in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.static import visible

from .forms.static import HIDDEN, MASK, Static
from .graph import FLOAT, Graph
from .qdq import Quantity, Range, activations, groups, quantity

Floats = NDArray[np.float32]
FAR = np.float32(-1e6)  # added to scores that nobody may see
BELOW = 20.0  # a score that much below the least that was seen has a share of e^-20
BINS = 1 << 16  # the upper half of a float32: sign, exponent and 7 bits
TAILS = (0.0, 1e-5, 1e-4, 1e-3)  # shares of values that a range may leave out at each end


class Observed:
    """A histogram of an edge's values, as bfloat16 has them."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Floats) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        upper = np.ascontiguousarray(values).view(np.uint16).reshape(-1)[1::2]  # little-endian
        self.counts += np.bincount(upper, minlength=BINS)

    def range(self, *, cache: bool) -> Range:
        """The least squared error of some ranges: all values, or without shares of them at the ends."""
        used = np.flatnonzero(self.counts)
        centres = (used.astype(np.uint32) << 16 | 0x8000).view(np.float32).astype(np.float64)
        order = np.argsort(centres)
        values, counts = centres[order], self.counts[used][order]
        shares = np.cumsum(counts) / counts.sum()
        best, least = (self.low, self.high), np.inf
        for tail in TAILS:
            low, high = self.low, self.high
            if tail:
                low = max(low, float(values[np.searchsorted(shares, tail)]))
                high = min(high, float(values[np.searchsorted(shares, 1 - tail)]))
            if cache:
                low, high = -max(-low, high), max(-low, high)
            step = quantity(low, high, cache=cache).scale
            outside = np.maximum(low - values, 0) + np.maximum(values - high, 0)
            error = float(np.dot(np.where(outside > 0, outside**2, step**2 / 12), counts))
            if error < least:
                best, least = (low, high), error
        return best


def observe(
    form: Static, folder: Path, hidden: list[list[Floats]], tables: Mapping[str, Floats], threads: int
) -> dict[str, Range]:
    """Ranges of all activations of `form`, whose graphs are a layer each, over the arrays in `folder`.

    `hidden`: for each text the hidden states of each call, [tokens, width], which are replaced layer by layer.
    `tables`: cos and sin of the positions [context, half].
    """
    found: dict[str, Range] = {}
    for graph in form.graphs:
        session = _session(graph, folder, threads)
        names = [o.name for o in session.get_outputs()]
        seen = {n: Observed() for n in names}
        border = graph.outputs[-1].name  # the hidden states, or the logits
        first = next(e.name for e in graph.inputs if len(e.shape) == 2)
        pasts = {e.name: [int(n) for n in e.shape] for e in graph.inputs if e.name.startswith("past_")}
        for text in hidden:
            cache = {n: np.zeros(shape, np.float32) for n, shape in pasts.items()}
            for call, x in enumerate(text):
                position = call * form.tokens
                feeds = {first: x, **cache, **_shared(graph, form, position, tables)}
                values = dict(zip(names, session.run(names, feeds), strict=True))
                for name, value in values.items():
                    seen[name].add(value[value > FAR / 2] if name in form.masked else value)
                for name in cache:
                    axis = 3 if "key" in name else 2
                    at = [slice(None)] * 4
                    at[axis] = slice(position, position + form.tokens)
                    cache[name][tuple(at)] = values[name.replace("past", "present")]
                text[call] = values[border]
        caches = set(form.caches)
        found |= {n: o.range(cache=n in caches) for n, o in seen.items()}
    return found


def _shared(graph: Graph, form: Static, position: int, tables: Mapping[str, Floats]) -> dict[str, Floats]:
    """Mask and rotary tables of a call, where the graph takes them."""
    found: dict[str, Floats] = {}
    for e in graph.inputs:
        if e.name == MASK:
            found[MASK] = np.where(visible(position, form.tokens, form.context), np.float32(0), FAR)
        elif e.name in tables:
            found[e.name] = tables[e.name][position : position + form.tokens].reshape([int(n) for n in e.shape])
    return found


def _session(graph: Graph, folder: Path, threads: int) -> Any:
    """The graph with all its activations as outputs, the hidden states last."""
    import onnxruntime as ort

    known = {e.name for e in (*graph.inputs, *graph.outputs)}
    more = Graph(graph.data_file)
    more.nodes, more.initializers, more.inputs, more.edges = graph.nodes, graph.initializers, graph.inputs, []
    more.outputs = [*(e for e in activations(graph) if e.name not in known and e.type == FLOAT), *graph.outputs]
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.disable_quant_qdq", "1")  # products of floats, as they stand
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    model = more.model("sampan", "").SerializeToString()
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def quantities(
    graphs: Sequence[Graph], form: Static, ranges: Mapping[str, Range], hidden: Range
) -> dict[str, Quantity]:
    """Of every activation: those that only move values share one. `hidden`: the range of the whole embedding."""
    known = dict(form.fixed) | {HIDDEN: hidden}
    known |= {name: (ranges[name][0] - BELOW, ranges[name][1]) for name in form.masked}
    known[MASK] = (-max(known[n][1] - known[n][0] for n in form.masked), 0.0)
    found: dict[str, Quantity] = {}
    for graph in graphs:
        together: dict[str, list[str]] = {}
        for name, leader in groups(graph).items():
            together.setdefault(leader, []).append(name)
        for names in together.values():
            spans = list(_spans(names, known, ranges))
            q = quantity(min(s[0] for s in spans), max(s[1] for s in spans), cache=bool({*names} & {*form.caches}))
            found |= dict.fromkeys(names, q)
    return found


def _spans(names: Sequence[str], known: Mapping[str, Range], ranges: Mapping[str, Range]) -> Iterator[Range]:
    fixed = [known[n] for n in names if n in known]
    yield from fixed or (ranges[n] for n in names if n in ranges)
