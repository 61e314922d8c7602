"""Is an ONNX folder, apart from its weights, what this version writes for the checkpoint?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sampan.artifact import MANIFEST
from sampan.checkpoint import Checkpoint
from sampan.convert.conversion import places, prepare
from sampan.convert.formats.onnx.caches import SCALE
from sampan.convert.formats.onnx.folder import COPIED
from sampan.convert.formats.onnx.graph import DATA_FILE
from sampan.errors import InputError, brief
from sampan.files import parse_json, read_bytes, there
from sampan.onnx import GRAPH, read_graph

from .artifact import Artifact
from .conformance import Check

TEMPLATE = "chat_template"  # has a check of its own, which compares what it renders
TABLE_ERROR = 1e-6  # of a cosine: libraries differ in the last bit


def check_folder(checkpoint: Checkpoint, artifact: Artifact) -> Check:
    """Graph, rotary tables, places of the tensors and small files against a new plan of the same conversion."""
    folder, manifest = artifact.path, artifact.manifest
    if manifest["sampan"] != version("sampan"):
        return Check("metadata", f"written by version {brief(manifest['sampan'])}", (), compared=False)
    options, known = manifest.get("options"), {"context": int, "accuracy": int, "kv": str}
    if not isinstance(options, dict) or not all(type(v) is known.get(k) for k, v in options.items()):
        return Check(
            "metadata", "nothing", (f"{MANIFEST}: options: expected {brief(list(known))}, found {brief(options)}",)
        )
    try:
        # nothing is written: the name only must not be one of the checkpoint's
        planned = prepare(checkpoint, folder / "planned", "onnx", str(manifest.get("scheme")), **options)
    except InputError as e:
        return Check("metadata", "nothing", (f"{MANIFEST}: it cannot be planned again: {e}",))
    files = {f.path.name: f.header for f in planned.plan.files}
    findings = _graph(folder, files.pop(GRAPH)) + _tables(folder, files.pop(DATA_FILE))
    wanted = json.loads(json.dumps(places(planned.plan)))
    if at := _difference(wanted, manifest["tensors"]):
        findings.append(f"{MANIFEST}: tensors: {at}")
    for name in dict.fromkeys([*files, *COPIED]):
        if not name.startswith(TEMPLATE) and (finding := _file(folder / name, files.get(name))):
            findings.append(f"{name}: {finding}")
    return Check("metadata", f"the graph, its rotary tables and {len(files)} files", tuple(findings))


def _file(path: Path, wanted: bytes | None) -> str:
    """What is wrong with a small file, or nothing."""
    found = read_bytes(path) if there(path) else None
    if found == wanted:
        return ""
    if found is None or wanted is None:
        return f"expected {'no file' if wanted is None else 'a file'}, found {'none' if found is None else 'one'}"
    try:
        a, b = json.loads(wanted), parse_json(found, path)
    except (ValueError, InputError):
        return "expected what the checkpoint has, found something else"
    for value in (a, b):
        if isinstance(value, dict):
            value.pop(TEMPLATE, None)
    return _difference(a, b)


def _difference(a: Any, b: Any, at: str = "") -> str:
    """The first place where two JSON values differ, with both values; empty if they are equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if found := _difference(a.get(key), b.get(key), f"{at}.{key}" if at else key):
                return found
        return ""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next(
            (d for n, (x, y) in enumerate(zip(a, b, strict=True)) if (d := _difference(x, y, f"{at}[{n}]"))), ""
        )
    return "" if a == b else f"{brief(at)}: expected {brief(a)}, found {brief(b)}"


def _tables(folder: Path, wanted: bytes) -> list[str]:
    """The rotary tables stand first in the data file; a model that does not rotate has none."""
    if not wanted:
        return []
    with (folder / DATA_FILE).open("rb") as f:
        a, raw = np.frombuffer(wanted, np.float32), f.read(len(wanted))
    b = np.frombuffer(raw.ljust(len(wanted), b"\0"), np.float32)
    bad = np.flatnonzero(~(np.abs(a - b) <= TABLE_ERROR * max(1.0, float(np.abs(a).max()))))
    if not bad.size:
        return []
    n = int(bad[0])
    name, row = ("cos", n) if n < a.size // 2 else ("sin", n - a.size // 2)
    return [f"{DATA_FILE}: rotary table {name}: value {row}: expected {a[n]:.7g}, found {b[n]:.7g} ({bad.size} differ)"]


def _graph(folder: Path, wanted: bytes) -> list[str]:
    """The first node, array or value in which the graph is another one."""
    import onnx

    found, planned = read_graph(folder).model, onnx.ModelProto.FromString(wanted)
    findings = _scales(planned, found)
    if found == planned:
        return findings
    for what in ("node", "initializer", "input", "output"):
        a, b = (list(getattr(m.graph, what)) for m in (planned, found))
        if a != b:
            return [f"{GRAPH}: {_first(what, a, b)}"]
    return [f"{GRAPH}: expected the graph of this version, found another opset, producer or value_info"]


def _scales(planned: Any, found: Any) -> list[str]:
    """Take the scales of int8 caches, which a plan leaves zero, over from `found`; those that are no scales."""
    from onnx import numpy_helper

    findings = []
    arrays = {t.name: t for t in found.graph.initializer}
    for tensor in planned.graph.initializer:
        given = arrays.get(tensor.name)
        if not SCALE.fullmatch(tensor.name) or given is None:
            continue
        if (given.data_type, given.dims) != (tensor.data_type, tensor.dims):
            continue  # told as another initializer
        values = numpy_helper.to_array(given)
        bad = values[~(np.isfinite(values) & (values > 0))]
        if bad.size:
            findings.append(f"{GRAPH}: {brief(tensor.name)}: expected scales above 0, found {bad[0]:g}")
        tensor.raw_data = given.raw_data
    return findings


def _first(what: str, a: Sequence[Any], b: Sequence[Any]) -> str:
    for x, y in zip(a, b, strict=False):
        if x == y:
            continue
        if x.name != y.name:
            return f"{what}: expected {brief(x.name)}, found {brief(y.name)}"
        if what == "node" and x.op_type == y.op_type and x.input == y.input and x.output == y.output:
            wanted, found = ({i.name: _value(i) for i in n.attribute} for n in (x, y))
            return f"{what} {brief(x.name)}: {_difference(wanted, found)}"
        return f"{what} {brief(x.name)}: expected {_plain(x)}, found {_plain(y)}"
    return f"expected {len(a)} of {what}, found {len(b)}"


def _value(attribute: Any) -> Any:
    from onnx import helper

    value = helper.get_attribute_value(attribute)
    return value if isinstance(value, (int, float)) else _plain(value)


def _plain(value: Any) -> str:
    return brief(" ".join(str(value).split()), 200)
