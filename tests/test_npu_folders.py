"""Folders for NPUs that are damaged, or that strangers made: one line says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from test_npu import to_npu

from sampan import qnn, runtime
from sampan.cli import cli
from sampan.convert.formats.onnx import compiled, npu
from sampan.convert.formats.onnx.forms.static import Static
from sampan.convert.formats.onnx.qdq import Quantity, activations
from sampan.errors import ChangedError, InputError
from sampan.runtime.opened import Opened
from sampan.validate.inspection import inspected


def _unmeasured(form: Static, *_: object) -> tuple[dict[str, Quantity], Mapping[str, Any]]:
    """Ranges out of the air: what the numbers are is no matter here."""
    found = {}
    for graph in form.graphs:
        eight = npu._caches(graph, form)
        found |= {
            e.name: Quantity(8, 0.1, 128) if e.name in eight else Quantity(16, 1e-3, 99) for e in activations(graph)
        }
    return found, {}


@pytest.fixture(scope="module")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two parts, not compiled."""
    out = tmp_path_factory.mktemp("npu") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npu, "measure", _unmeasured)
        patch.setattr(compiled, "compiled", lambda *a: ({}, []))
        patch.setattr(qnn, "check", lambda: "none")
        return to_npu(model("trained"), out, split=2_500_000).out


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def says(message: str, folder: Path, target: str = "cpu") -> None:
    with pytest.raises(InputError, match=message) as error:
        runtime.open(folder, target=target)
    assert "\n" not in str(error.value)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "static.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def parts(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "static.json").read_text())["parts"]
    return found


def test_a_folder_that_lies(folder: Path, model: Any) -> None:
    good = json.loads((folder / "static.json").read_text())
    for message, changes in (
        ("context: expected 1 to", {"context": -1}),
        ("graphs: expected names of graphs beside it", {"parts": [{"graphs": {"128": "../a.onnx", "1": "b.onnx"}}]}),
        ("embedding.data: expected .* bytes", {"vocab": 10**6}),
        ("tables: 'cos'|tables: cos", {"tables": {"cos": [1, 2]}}),
        ("tokens: expected", {"tokens": [1]}),
    ):
        edit(folder, **good | changes)
        says(message, folder)
    edit(folder, **good)
    says("it holds no compiled graphs; convert it again", folder, "qnn")
    says(r"a folder with static\.json", model("trained"), "qnn")
    for option in ("flash_attention", "record_inputs", "record_experts"):
        with pytest.raises(InputError, match=f"{option}: "):
            runtime.open(folder, runtime.EngineOptions(**{option: True}))  # type: ignore[arg-type]


def test_parts_that_do_not_follow_each_other(folder: Path) -> None:
    first, second = parts(folder)
    edit(folder, parts=[first])
    says(r"part-1\.128\.onnx: expected logits \[128, 2048\] of the last part, found None", folder)
    edit(folder, parts=[second, first])
    says(r"part-2\.128\.onnx: /layers\..*: expected an input that parts before it give", folder)
    edit(folder, parts=[first, first, second])
    says("graphs: expected each graph once", folder)
    edit(folder, parts=[{"graphs": {"128": p["graphs"]["1"], "1": p["graphs"]["128"]}} for p in (first, second)])
    says(r"part-1\.1\.onnx: output for past_key\.0: expected \[2, 128, 128\], found \[2, 128, 1\]", folder)
    edit(folder, parts=[first, second], htp=["75/../../x"])
    says("expected parts, end tokens and HTP versions", folder)


def test_graphs_that_are_not_ours(folder: Path) -> None:
    path = folder / "part-1.1.onnx"
    graph = onnx.load(path, load_external_data=False)
    outputs = {o.name: o for o in graph.graph.output}
    outputs["present_key.0"].name = "present_key.9"
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = ["present_key.9" if n == "present_key.0" else n for n in names]
    onnx.save(graph, path)
    says(r"part-1\.1\.onnx: expected an output for each cache that it takes, found present_key\.9", folder)
    path.unlink()
    says(r"part-1\.1\.onnx: expected a file, found none; is the folder complete\?", folder)
    os.mkfifo(path)
    says(r"part-1\.1\.onnx: this is a FIFO", folder)


def test_more_than_it_was_made_for(whole: Path) -> None:
    with pytest.raises(
        InputError, match=r"context: expected at most the 256 slots .*, found 300; convert it with --con"
    ):
        runtime.open(whole, runtime.EngineOptions(context=300))
    with pytest.raises(InputError, match=r"found 1000000; its model was made for \d+"):
        runtime.open(whole, runtime.EngineOptions(context=1_000_000))
    with pytest.raises(InputError, match="out: expected a GGUF file, found a folder; one for an NPU is copied"):
        CliRunner().invoke(cli, ["push", str(whole)], catch_exceptions=False)


@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e300])
def test_a_scale_that_is_no_number_of_float32(scale: float, folder: Path) -> None:
    path = folder / "quantities.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"logits": [16, scale, 0]}))
    says("logits: expected bits, scale and zero point", folder)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "expected the name of a file beside it"),
        ({"ep_cache_context": "x.bin"}, "expected the name of a file beside it"),  # the default is inside the graph
        ({"ep_cache_context": "../x.bin", "embed_mode": 0}, "expected the name of a file beside it"),
        ({"ep_cache_context": "x.bin", "embed_mode": 0}, r"x\.bin: expected a file, found none; is the folder comp"),
        ({"ep_cache_context": "..", "embed_mode": 0}, "this is a folder"),
    ],
)
def test_a_compiled_graph_without_its_binary(
    attributes: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn, "check", lambda: "none")
    node = onnx.helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", **attributes)
    graph = onnx.helper.make_graph([node], "g", [], [])
    for name in (n for part in parts(folder) for n in part["graphs"].values()):
        onnx.save(onnx.helper.make_model(graph), folder / f"{name.removesuffix('.onnx')}.v75.onnx")
    says(message, folder, "qnn")
    with pytest.raises(InputError, match=message):
        inspected(str(folder), None)


def test_a_folder_with_other_weights_is_another_model(folder: Path, whole: Path) -> None:
    """By which a saved state is known; and weights that change while a session has them are no model."""
    before = Opened(folder)
    assert before.identity == Opened(whole).identity
    weights = folder / "part-2.data"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert before.identity != Opened(folder).identity
    with pytest.raises(ChangedError, match=r"part-2\.data: the file was changed while it was open"):
        before.check()
