"""Logits of transformers in float64, and how far its own float32 is from them: what a float32 engine may be, too.

How exact float32 is depends on the model (6e-7 to 4e-5 of the largest logit here) and a little on the processor, so a
bound is a multiple of transformers' own error, measured where the test runs. Measured on 35 models: ONNX Runtime 0.2 to
2.2 times that error, llama.cpp 0.2 to 5.0 times. Eight times leaves room for kernels that add up in another order;
faults are hundreds of times larger (`test_the_comparison_can_fail`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny import auto_class

MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """`logits`: float64 [n, vocab]. `own`: largest difference of transformers' float32 logits from them."""

    logits: NDArray[np.float64]
    own: float

    def error(self, ours: NDArray[Any]) -> float:
        """The largest difference of some logits, in multiples of transformers' own float32 error."""
        assert float(np.abs(self.logits).max()) > 0.5, "logits too small to tell anything"
        return float(np.abs(ours - self.logits).max()) / self.own


def assert_close(ours: NDArray[Any], theirs: Reference) -> None:
    """float32 logits that are as good as transformers' own."""
    error = theirs.error(ours)
    assert error <= MULTIPLE, f"{error:.1f} times transformers' own float32 error of {theirs.own:.1e}"


def reference(folder: Path, tokens: Sequence[int]) -> Reference:
    """transformers' logits for every position; kept for the other tests of a run."""
    return _reference(folder, tuple(tokens))


@cache
def _reference(folder: Path, tokens: tuple[int, ...]) -> Reference:
    import torch
    from transformers import AutoConfig

    found, auto = [], auto_class(AutoConfig.from_pretrained(folder))
    for dtype in (torch.float64, torch.float32):
        model = auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager")
        with torch.no_grad():
            found.append(model(torch.tensor([tokens]), use_cache=False).logits[0].numpy())
    exact, single = found
    return Reference(exact, float(np.abs(single - exact).max()))
