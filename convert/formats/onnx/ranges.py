"""Ranges of activations: what a static graph's edges hold while it reads a text, layer by layer in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import wrong
from sampan.static import visible

from .centres import before, fill
from .forms.static import MASK, Static
from .graph import FLOAT, Graph
from .qdq import Quantity, Range, activations, groups, quantity

Floats = NDArray[np.float32]
FAR = np.float32(-1e6)  # added to scores that nobody may see
BELOW = 20.0  # a score that much below the least that was seen has a share of e^-20
FINITE = 65504.0  # the largest float16
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
) -> tuple[dict[str, Range], dict[str, Floats]]:
    """Ranges of all activations of `form`, whose graphs are a layer each, over the arrays in `folder`; centres of keys,
    which are filled in.

    `hidden`: for each text the hidden states of each call, [tokens, width], which are replaced layer by layer.
    `tables`: cos and sin of the positions [context, half].
    """
    found: dict[str, Range] = {}
    centres: dict[str, Floats] = {}
    starts = _starts(len(hidden), len(hidden[0]) * form.tokens, tables)
    for graph in form.graphs:
        own = _centres(graph, form, folder, hidden, tables, threads)
        fill(graph, own)
        centres |= own
        whole = _all_outputs(graph)
        session, names = _session(whole, folder, threads), [o.name for o in whole.outputs]
        seen = {n: Observed() for n in names}
        border = graph.outputs[-1].name  # the hidden states, or the logits
        pasts = {e.name: [int(n) for n in e.shape] for e in graph.inputs if e.name.startswith("past_")}
        for start, text in zip(starts, hidden, strict=True):
            cache = {n: np.zeros(shape, np.float32) for n, shape in pasts.items()}
            for call, x in enumerate(text):
                position = call * form.tokens
                feeds = {_first(graph): x, **cache, **_shared(graph, form, position, tables, start)}
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
    return found, centres


def _starts(texts: int, tokens: int, tables: Mapping[str, Floats]) -> list[int]:
    """What each text's positions begin at: the first at 0, the last ends with the context.

    They do not lie evenly, or a rotation might be in step with them.
    """
    last = min((len(t) for t in tables.values()), default=tokens) - tokens
    return [round(last * (i / max(1, texts - 1)) ** 2) for i in range(texts)]


def _centres(
    graph: Graph, form: Static, folder: Path, hidden: list[list[Floats]], tables: Mapping[str, Floats], threads: int
) -> dict[str, Floats]:
    """Means of keys [heads, width], over the texts and over all positions of the context for each of their tokens.

    A rotation is linear in cos and sin, so it is done once, with their means.
    """
    found: dict[str, Floats] = {}
    means = {
        name: np.tile(t.mean(axis=0, dtype=np.float64).astype(np.float32), (form.tokens, 1))
        for name, t in tables.items()
    }
    for name in (e.name for e in graph.edges if e.name in form.keys):
        part = before(graph, name)
        session, turns = _session(part, folder, threads), _shared(part, form, 0, means)
        calls = [session.run([name], {_first(part): x, **turns})[0] for text in hidden for x in text]
        found[name] = np.mean([c.mean(axis=(0, 1), dtype=np.float64) for c in calls], axis=0).astype(np.float32)
    return found


def _first(graph: Graph) -> str:
    """The input for the hidden states."""
    return next(e.name for e in graph.inputs if len(e.shape) == 2)


def _shared(
    graph: Graph, form: Static, position: int, tables: Mapping[str, Floats], start: int = 0
) -> dict[str, Floats]:
    """Mask and rotary tables of a call, where the graph takes them; positions count from `start`."""
    found: dict[str, Floats] = {}
    at = start + position
    for e in graph.inputs:
        if e.name == MASK:
            found[MASK] = np.where(visible(position, form.tokens, form.context), np.float32(0), FAR)
        elif e.name in tables:
            found[e.name] = tables[e.name][at : at + form.tokens].reshape([int(n) for n in e.shape])
    return found


def _all_outputs(graph: Graph) -> Graph:
    """The graph with all its activations as outputs, the hidden states last."""
    known = {e.name for e in (*graph.inputs, *graph.outputs)}
    more = Graph(graph.data_file)
    more.nodes, more.initializers, more.inputs, more.edges = graph.nodes, graph.initializers, graph.inputs, []
    more.outputs = [*(e for e in activations(graph) if e.name not in known and e.type == FLOAT), *graph.outputs]
    return more


def _session(graph: Graph, folder: Path, threads: int) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.disable_quant_qdq", "1")  # products of floats, as they stand
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    model = graph.model("sampan", "").SerializeToString()
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def quantities(graphs: Sequence[Graph], form: Static, ranges: Mapping[str, Range]) -> dict[str, Quantity]:
    """Of every activation that does not stay a float: those that only move values share one.

    Raises InputError where one that stays a float is beyond float16, in which an NPU holds it.
    """
    for name in form.floats:
        if (most := max(map(abs, ranges.get(name, (0.0,))))) > FINITE:
            raise wrong(name, f"values that the NPU's float16 holds, up to {FINITE:g}", f"{most:g}", "try --to gguf")
    known = dict(form.fixed)
    known |= {name: (ranges[name][0] - BELOW, ranges[name][1]) for name in form.masked}
    known[MASK] = (-max(known[n][1] - known[n][0] for n in form.masked), 0.0)
    found: dict[str, Quantity] = {}
    for graph in graphs:
        together: dict[str, list[str]] = {}
        for name, leader in groups(graph).items():
            together.setdefault(leader, []).append(name)
        for names in (n for n in together.values() if not {*n} & {*form.floats}):
            spans = list(_spans(names, known, ranges))
            of = {"cache": bool({*names} & {*form.caches}), "signed": bool({*names} & {*form.signed})}
            q = quantity(min(s[0] for s in spans), max(s[1] for s in spans), **of)
            found |= dict.fromkeys(names, q)
    return found


def _spans(names: Sequence[str], known: Mapping[str, Range], ranges: Mapping[str, Range]) -> Iterator[Range]:
    fixed = [known[n] for n in names if n in known]
    yield from fixed or (ranges[n] for n in names if n in ranges)
