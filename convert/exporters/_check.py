"""Is a traced graph the model? Its logits in ONNX Runtime against a reference's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, brief, wrong

TOLERANCE = 2e-5  # of the largest logit, or of 1: the noise of float32
PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
Floats = NDArray[np.float32]


def check(graph: Path, tokens: Sequence[int], starts: Sequence[int], reference: Floats) -> tuple[float, float]:
    """Compare with `reference`, float32 [1 + starts, tokens, vocabulary]; returns the largest error and its bound.

    From position 0 in one piece, then in pieces and token by token over the cache; from `starts` in one piece where
    the graph takes positions. Raises InputError with the number when it is another model.
    """
    if not np.isfinite(reference).all():
        raise wrong(graph.name, "finite logits of the reference", "NaN or infinity", "the checkpoint is damaged")
    decoder = _Decoder(graph)
    bound = TOLERANCE * max(1.0, float(np.abs(reference).max()))
    half, n = len(tokens) // 2, len(tokens)
    pieces = {
        "in one piece": ([0, n], 0, 0),
        "over the cache": ([0, half, n - n // 4, *range(n - n // 4 + 1, n + 1)], 0, 0),
    }
    if decoder.takes_positions:
        pieces |= {f"from position {s}": ([0, n], s, r) for r, s in enumerate(starts[: len(reference) - 1], 1)}
    worst = 0.0
    for how, (cuts, start, row) in pieces.items():
        logits = decoder(tokens, cuts, start)
        if logits.shape != reference[row].shape:
            raise wrong(f"{graph.name}: logits", list(reference[row].shape), list(logits.shape))
        error = float(np.abs(logits.astype(np.float64) - reference[row]).max())
        if not error <= bound:
            raise wrong(
                f"{graph.name}, {how}", f"the logits of transformers within {bound:.1e}", f"{error:.1e}",
                "the export is not this model: nothing was written",
            )  # fmt: skip
        worst = max(worst, error)
    return worst, bound


class _Decoder:
    """A text decoder with a cache in ONNX Runtime, batch 1."""

    def __init__(self, graph: Path) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        try:
            self._session: Any = ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
        except Exception as e:  # the package's exceptions have no common base
            raise InputError(f"{graph.name}: ONNX Runtime cannot load it: {brief(str(e), 300)}") from None
        inputs = {i.name: i for i in self._session.get_inputs()}
        self.takes_positions = "position_ids" in inputs
        self._past = {n: i.shape for n, i in inputs.items() if PAST.fullmatch(n)}
        wanted = {"input_ids", "attention_mask", "position_ids", *self._past}
        if not self._past or inputs.keys() - wanted or not {"input_ids", "attention_mask"} <= inputs.keys():
            raise wrong(graph.name, "the inputs of a text decoder with a cache", brief(", ".join(inputs)))
        for name, shape in self._past.items():
            if len(shape) != 4 or type(shape[1]) is not int or type(shape[3]) is not int:
                raise wrong(f"{graph.name}: {name}", "[1, heads, tokens, head size]", shape)
        self._names = ["logits", *(n.replace("past_key_values", "present") for n in self._past)]

    def __call__(self, tokens: Sequence[int], cuts: Sequence[int], start: int) -> Floats:
        """Logits float32 [tokens, vocabulary], evaluated from cut to cut, the first token at position `start`."""
        cache = {n: np.zeros((1, s[1], 0, s[3]), np.float32) for n, s in self._past.items()}
        parts = []
        for a, b in pairwise(cuts):
            feed = {"input_ids": np.array([tokens[a:b]], np.int64), "attention_mask": np.ones((1, b), np.int64)}
            if self.takes_positions:
                feed["position_ids"] = np.arange(start + a, start + b, dtype=np.int64)[None]
            logits, *present = self._session.run(self._names, feed | cache)
            cache = dict(zip(self._past, present, strict=True))
            parts.append(logits[0])
        return np.concatenate(parts)
