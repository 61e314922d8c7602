"""Calls of the float graphs over the calibration text, kept as arrays: what Rockchip's compiler measures ranges on, and
what its simulator is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import wrong
from sampan.static import TOKENS, visible

from ...architecture import Architecture
from .calibration import CALLS, encoded
from .forms.static import MASK, Static
from .graph import Graph

Floats = NDArray[np.float32]
PIECE = TOKENS[0]
WIDE = np.float32(-3e4)  # a mask that hides all
SEEN = 0.01  # share of the largest value that a narrow mask may change
BYTES = 1 << 30  # of the calls that are kept of a graph, the same of each text


def texts(folder: Path, arch: Architecture, context: int, embedding: NDArray[np.float16]) -> list[list[Floats]]:
    """Hidden states [128, width] of each call, for each text."""
    calls = min(CALLS, context // PIECE)
    return [[np.asarray(embedding[ids], np.float32) for ids in text] for text in encoded(folder, arch.vocab, calls, 1)]


class Sampler:
    """Goes through the parts in order. Pieces of 128 tokens fill the cache; then `again` tokens of the last piece are
    evaluated one by one, with the slots before them.
    """

    def __init__(
        self,
        forms: Mapping[int, Static],
        positions: Mapping[str, Floats],
        pieces: list[list[Floats]],
        again: int,
        far: float,
        threads: int,
    ) -> None:
        self._forms, self._positions, self._far, self._threads = forms, positions, np.float32(far), threads
        self._pieces = pieces
        self._at = np.linspace(PIECE - 1, 0, again).astype(int)
        self._single = [[text[-1][i : i + 1] for i in self._at] for text in pieces]

    def part(self, part: int, folder: Path, work: Path) -> dict[int, list[str]]:
        """Run a part: for each number of tokens the names of calls below `work`/tokens.

        A call is a folder with N.npy for each input and out-N.npy for each output. There is the last piece of every
        text and what was evaluated again, as far as BYTES go.
        """
        graphs = {n: form.graphs[part] for n, form in self._forms.items()}
        sessions = {n: _session(folder, part, n, self._threads) for n in graphs}
        kept: dict[int, list[str]] = {n: [] for n in graphs}
        most = {n: max(1, BYTES // _nbytes(g) // len(self._pieces)) for n, g in graphs.items()}
        for number, pieces in enumerate(self._pieces):
            cache = {e.name: np.zeros(_sizes(e.shape), np.float32) for e in graphs[1].inputs if e.name[:5] == "past_"}
            last = len(pieces) - 1
            for call, position, size, at in self._schedule(last):
                graph, hidden = graphs[size], (pieces, self._single[number])[size == 1]
                feeds = self._feeds(graph, size, position, hidden[at], cache)
                names = [e.name for e in graph.outputs]
                values = dict(zip(names, sessions[size].run(names, feeds), strict=True))
                if call >= last and MASK in feeds and self._far > WIDE:
                    wide = feeds | {MASK: np.where(feeds[MASK] < 0, WIDE, feeds[MASK])}
                    _hidden(values, dict(zip(names, sessions[size].run(names, wide), strict=True)), self._far)
                if call >= last and call - last <= most[size]:
                    name = f"{number}-{call}"
                    _save(work / str(size) / name, feeds, values)
                    kept[size].append(name)
                if size > 1:
                    _fill(cache, values, position)
                hidden[at] = values[graph.outputs[-1].name]
        return kept

    def _schedule(self, last: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, position and size of each call of a text, and which of the hidden states it takes."""
        yield from ((n, n * PIECE, PIECE, n) for n in range(last + 1))
        for n, i in enumerate(self._at):
            yield last + 1 + n, last * PIECE + int(i), 1, n

    def _feeds(
        self, graph: Graph, size: int, position: int, hidden: Floats, cache: Mapping[str, Floats]
    ) -> dict[str, Floats]:
        """In the order of the graph's inputs."""
        found: dict[str, Floats] = {}
        for e in graph.inputs:
            if e.name == MASK:
                values = np.where(visible(position, size, self._forms[size].context), np.float32(0), self._far)
            elif e.name in self._positions:
                values = self._positions[e.name][position : position + size]
            elif e.name in cache:
                values = cache[e.name]
            else:
                values = hidden
            found[e.name] = values.reshape(_sizes(e.shape))
        return found


def _hidden(values: Mapping[str, Floats], exact: Mapping[str, Floats], far: np.float32) -> None:
    """Refuse a model whose scores lie so far apart that a narrow mask does not hide what nobody may see."""
    for name, value in exact.items():
        error = float(np.abs(values[name] - value).max() / max(float(np.abs(value).max()), 1e-9))
        if not error <= SEEN:
            found = f"{error:.2g} of {name}"
            raise wrong("--quant", f"scores that a mask of {far:g} hides, as 8 bits want it", found, "try fp16")


def _sizes(shape: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(int(n) for n in shape)


def _nbytes(graph: Graph) -> int:
    return 4 * sum(int(np.prod(_sizes(e.shape))) for e in (*graph.inputs, *graph.outputs))


def _fill(cache: Mapping[str, Floats], values: Mapping[str, Floats], position: int) -> None:
    for name, slots in cache.items():
        new = values[name.replace("past", "present")]
        if name.startswith("past_key"):
            slots[..., position : position + PIECE] = new
        else:
            slots[:, position : position + PIECE] = new


def _save(folder: Path, feeds: Mapping[str, Floats], values: Mapping[str, Floats]) -> None:
    folder.mkdir(parents=True)
    for n, array in enumerate(feeds.values()):
        np.save(folder / f"{n}.npy", np.ascontiguousarray(array))
    for n, array in enumerate(values.values()):
        np.save(folder / f"out-{n}.npy", array)


def _session(folder: Path, part: int, tokens: int, threads: int) -> Any:
    import onnxruntime as ort

    from .npu import graph_name

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    return ort.InferenceSession(folder / graph_name(part, tokens), settings, providers=["CPUExecutionProvider"])
