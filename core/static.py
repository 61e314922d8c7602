"""Folders with graphs of fixed size: what their files say, and what the graphs are fed.

A graph takes `tokens` tokens behind a cache of `context` slots. Token i of a call stands in column context + i; the
caller puts its key and value into slot position + i afterwards. Numbers are codes, value = scale · (code - zero), or
floats where the layout has a `type`: what the device's compiler makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import rknn
from .errors import brief, wrong
from .files import read_json, size_of, there

LAYOUT, QUANTITIES = "static.json", "quantities.json"
EMBEDDING_FILE, TABLES_FILE = "embedding.data", "tables.data"
TOKENS = (128, 1)  # that a prompt's and a further token's graph take
LARGEST, LOWEST = 2**31, -65504.0  # the latter is float16's
SCALES = 1e30  # a scale is less, and more than its reciprocal: values of float16 divided by it are numbers of float32


@dataclass(frozen=True, slots=True)
class Layout:
    """`parts`: for each part the file of its graph for each number of tokens; `tables`: shapes of cos and sin.

    `far`: what is added to scores that nobody may see, where numbers are floats.
    """

    target: str
    htp: tuple[str, ...]
    context: int
    longest: int
    tokens: tuple[int, ...]
    vocab: int
    hidden: int
    ends: tuple[int, ...]
    parts: tuple[Mapping[int, str], ...]
    tables: Mapping[str, tuple[int, int]]
    type: str = ""
    far: float = 0.0


def is_static(folder: Path) -> bool:
    return (folder / LAYOUT).is_file()


def read_layout(folder: Path) -> Layout:
    """Of a folder. Raises InputError where it says something else than the converter writes, or files are short."""
    path, data = folder / LAYOUT, read_json(folder / LAYOUT)

    def value(holder: Any, key: str, kind: type) -> Any:
        found = holder.get(key) if isinstance(holder, dict) else None
        if type(found) is not kind:
            raise wrong(
                f"{path}: {key}", {int: "a number", str: "a text"}.get(kind, f"a {kind.__name__}"), brief(found)
            )
        return found

    def number(holder: Any, key: str, least: int = 1) -> int:
        found: int = value(holder, key, int)
        if not least <= found < LARGEST:
            raise wrong(f"{path}: {key}", f"{least} to {LARGEST}", found)
        return found

    sizes = value(data, "tokens", list)
    if sizes != list(TOKENS):
        raise wrong(f"{path}: tokens", list(TOKENS), brief(sizes))
    parts = []
    for part in value(data, "parts", list):
        graphs = value(part, "graphs", dict)
        parts.append({n: value(graphs, str(n), str) for n in TOKENS})
        for name in parts[-1].values():
            if Path(name).name != name or not name.endswith(".onnx"):
                raise wrong(f"{path}: graphs", "names of graphs beside it", brief(name))
    if len({name for part in parts for name in part.values()}) != len(TOKENS) * len(parts):
        raise wrong(f"{path}: graphs", "each graph once", "one of them again")
    tables = {str(name): tuple(shape) for name, shape in value(data, "tables", dict).items() if isinstance(shape, list)}
    ends, htp = (tuple(value(data, key, list)) for key in ("ends", "htp"))
    if not parts or not all(type(e) is int for e in ends) or not all(type(v) is str and v.isalnum() for v in htp):
        raise wrong(path, "parts, end tokens and HTP versions", brief(data))
    layout = Layout(
        value(data, "target", str), htp, number(data, "context"), number(data, "longest"), TOKENS,
        number(data, "vocab"), number(data, "hidden"), ends, tuple(parts), tables,
        value(data, "type", str) if "type" in data else "", value(data, "far", float) if "far" in data else 0.0,
    )  # fmt: skip
    if layout.type not in (rknn.TYPES if layout.target in rknn.CHIPS else ("",)):
        raise wrong(f"{path}: type", f"one that {brief(layout.target)} has", brief(layout.type))
    if layout.type and not LOWEST <= layout.far < 0:
        raise wrong(f"{path}: far", f"{LOWEST:g} to 0", brief(layout.far))
    for name, shape in tables.items():
        if len(shape) != 2 or shape[0] != layout.context or type(shape[1]) is not int or not 0 < shape[1] < 2**16:
            raise wrong(f"{path}: tables: {brief(name)}", f"[{layout.context}, width]", brief(shape))
    files = {EMBEDDING_FILE: 2 * layout.vocab * layout.hidden, TABLES_FILE: 4 * sum(map(math.prod, tables.values()))}
    for name, nbytes in files.items():
        if (size := size_of(folder / name)) != nbytes:
            raise wrong(folder / name, f"{nbytes} bytes", size)
    return layout


def read_quantities(folder: Path) -> dict[str, tuple[int, float, int]]:
    """Activation → bits, scale and zero point."""
    path, found = folder / QUANTITIES, {}
    for name, q in read_json(path).items():
        good = isinstance(q, list) and [type(v) for v in q] == [int, float, int] and q[0] in (8, 16)
        if not good or not 1 / SCALES < q[1] < SCALES or not 0 <= q[2] < 1 << q[0]:
            raise wrong(f"{path}: {brief(name)}", "bits, scale and zero point", brief(q))
        found[name] = (q[0], q[1], q[2])
    return found


def compiled(graph: str, htp: str) -> str:
    """The compiled graph's name."""
    return f"{graph.removesuffix('.onnx')}.v{htp}.onnx"


def compiled_for(folder: Path, layout: Layout) -> list[str]:
    """HTP versions that all graphs of a folder are compiled for."""
    names = [name for part in layout.parts for name in part.values()]
    return [v for v in layout.htp if all(there(folder / compiled(name, v)) for name in names)]


def visible(position: int, tokens: int, context: int) -> NDArray[np.bool_]:
    """Which columns each token of a call at `position` sees, [1, 1, tokens, context + tokens]."""
    seen = np.zeros((1, 1, tokens, context + tokens), np.bool_)
    seen[..., :position] = True
    seen[0, 0, :, context:] = np.tri(tokens, dtype=np.bool_)
    return seen
