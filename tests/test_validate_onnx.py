"""`sampan validate` with ONNX folders: drift, every fault by its check, hostile graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from conftest import run_cli
from onnx_peer import to_onnx
from validating import ONE, QUICK, aborting, cache, findings, kld, run

from sampan.errors import InputError
from sampan.onnx import read_graph
from sampan.validate import blame, isolated, verdict
from sampan.validate.artifact import Stored, open_onnx
from sampan.validate.text import text_report
from sampan.validate.validation import Options

__all__ = ["cache"]  # a fixture of every test here

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """`folder(quant)` → the trained model as an ONNX folder, made once: copy it before changing it."""
    made: dict[str, Path] = {}

    def get(quant: str) -> Path:
        if quant not in made:
            made[quant] = tmp_path_factory.mktemp("onnx") / quant
            to_onnx(tiny.FIXTURE, made[quant], quant)
        return made[quant]

    return get


@pytest.fixture
def bad(folder: Folders, tmp_path: Path) -> Path:
    """A copy of the int4 folder, to be harmed."""
    return Path(shutil.copytree(folder("int4"), tmp_path / "bad"))


def change(folder: Path, name: str, edit: Callable[[list[bytearray], Stored], None]) -> None:
    """Rewrite the bytes of a tensor in place: `edit` gets one array of bytes for each array of its type."""
    t = open_onnx(folder).tensors[name]
    row = t.type.part_bytes(t.columns)
    assert t.step == 1
    with t.path.open("r+b") as f:
        parts = []
        for offset, size in zip(t.offsets, row, strict=True):
            f.seek(offset)
            parts.append(bytearray(f.read(t.rows * size)))
        edit(parts, t)
        for offset, part in zip(t.offsets, parts, strict=True):
            f.seek(offset)
            f.write(part)


def graph(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """Rewrite model.onnx in place."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


# Numbers


@pytest.mark.slow
def test_a_faithful_folder_passes(folder: Folders) -> None:
    """int8 passes in the test of convert --validate."""
    report = run(folder("int4"), options=Options(windows=30))
    assert report["verdict"] == "passed"
    assert findings(report) == {}
    checks = report["candidates"][0]["checks"]
    assert [(c["name"], c["result"]) for c in checks] == [
        (n, "equal") for n in ("tensors", "metadata", "tokenizer", "chat template")
    ]
    assert 1e-6 < kld(report) < 0.1


@pytest.mark.slow
def test_fp32_is_transformers(folder: Folders) -> None:
    report = run(folder("fp32"), options=replace(ONE, torch=True))
    assert report["reference"]["engine"] == "torch"
    assert kld(report) < 1e-9


@pytest.mark.slow
def test_weights_are_judged_without_the_graph(folder: Folders) -> None:
    """The dequantised weights run in llama.cpp: another engine confirms the graph's numbers."""
    report = run(folder("int4"), options=replace(ONE, parts=True))
    assert 0 < kld(report, "engine") < kld(report, "weights") / 10
    assert kld(report, "weights") == pytest.approx(kld(report), rel=0.1)


@pytest.mark.slow
def test_formats_are_compared(folder: Folders, gguf: Callable[[str, str], Path]) -> None:
    first, second = gguf("trained", "q2_k"), folder("int4")
    text = run_cli("validate", str(tiny.FIXTURE), str(first), str(second), "--windows", "2")
    assert text.returncode == 1, "undecided: too few windows"
    ratio = text.stdout.split(f"KLD of {first} / {second}: ")[1].split(";")[0]
    assert float(ratio) > 2


@pytest.mark.slow
def test_a_folder_as_the_reference(folder: Folders, gguf: Callable[[str, str], Path]) -> None:
    report = run(folder("int8"), folder("fp32"), ONE)
    assert report["candidates"][0]["checks"] == []
    assert 0 < kld(report) < 0.001
    assert report["reference"]["floor"] == 0.0
    other = run(gguf("trained", "q8_0"), folder("int8"), ONE)
    assert other["reference"]["floor"] == "not measured: an ONNX folder"
    with pytest.raises(InputError, match="--parts: expected a checkpoint as REFERENCE for an ONNX folder"):
        run(folder("int8"), folder("fp32"), replace(ONE, parts=True))


# Faults, each named by its check


@pytest.mark.slow
def test_a_zeroed_tensor(bad: Path) -> None:
    def zero(parts: list[bytearray], t: Stored) -> None:
        parts[1][:] = bytes(len(parts[1]))

    change(bad, "blk.1.ffn_up.weight", zero)
    report = run(bad, options=ONE)
    assert report["verdict"] == "failed"
    assert findings(report) == {"tensors": ["blk.1.ffn_up.weight: nothing but zeros in rows 0 to 511"]}


@pytest.mark.slow
def test_swapped_rows_of_q_and_k(bad: Path) -> None:
    tensors = open_onnx(bad).tensors
    q, k = tensors["blk.0.attn_q.weight"], tensors["blk.0.attn_k.weight"]
    with q.path.open("r+b") as f:
        for a, b, row in zip(q.offsets, k.offsets, q.type.part_bytes(q.columns), strict=True):
            data = []
            for offset in (a, b):
                f.seek(offset)
                data.append(f.read(k.rows * row))
            for offset, other in zip((a, b), reversed(data), strict=True):
                f.seek(offset)
                f.write(other)
    found = findings(run(bad, options=ONE))["tensors"]
    assert [f.split(":")[0] for f in found] == ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]


@pytest.mark.slow
def test_one_row_with_flipped_nibbles(bad: Path) -> None:
    def flip(parts: list[bytearray], t: Stored) -> None:
        row = t.type.part_bytes(t.columns)[0]
        parts[0][17 * row : 18 * row] = bytes(b ^ 0xFF for b in parts[0][17 * row : 18 * row])

    change(bad, "blk.0.attn_q.weight", flip)
    (found,) = findings(run(bad, options=ONE))["tensors"]
    assert found.startswith("blk.0.attn_q.weight: row 17: relative error up to ")


@pytest.mark.slow
def test_a_changed_rope_table(bad: Path) -> None:
    with (bad / "model.onnx.data").open("r+b") as f:
        f.seek(4 * 64 * 5)  # cos of position 5
        f.write(np.float32(0.5).tobytes())
    (found,) = findings(run(bad, options=ONE))["metadata"]
    assert found.startswith("model.onnx.data: rotary table cos: value 320: expected 0.2836622, found 0.5 (1 differ")


@pytest.mark.slow
def test_a_changed_norm_epsilon(bad: Path) -> None:
    def harm(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name.startswith("/layers.2/input_layernorm/"))
        next(a for a in node.attribute if a.name == "epsilon").f = 1e-5

    report = run(graph(bad, harm), options=ONE)
    (found,) = findings(report)["metadata"]
    assert found.startswith("model.onnx: node /layers.2/input_layernorm/SkipSimplifiedLayerNormalization: epsilon: ")
    assert list(findings(report)) == ["metadata"]


@pytest.mark.slow
def test_an_array_that_points_elsewhere(bad: Path) -> None:
    """The graph reads other bytes than the manifest says, which are right."""

    def harm(model: onnx.ModelProto) -> None:
        arrays = {t.name: t for t in model.graph.initializer}
        for a, b in zip(
            arrays["/layers.1/mlp/gate_proj/weight"].external_data,
            arrays["/layers.1/mlp/up_proj/weight"].external_data,
            strict=True,
        ):
            a.value = b.value

    found = findings(run(graph(bad, harm), options=ONE))
    assert found["metadata"][0].startswith("model.onnx: initializer /layers.1/mlp/gate_proj/weight: expected ")


def test_a_manifest_that_hides_a_tensor(bad: Path) -> None:
    tensors = json.loads((bad / "manifest.json").read_text())["tensors"]
    tensors["blk.1.ffn_up.weight"]["at"] = 1
    tensors["blk.1.ffn_up.weight"]["shape"] = [511, 256]
    tiny.edit_json(bad / "manifest.json", tensors=tensors)
    found = findings(run(bad, options=ONE))
    assert found["tensors"] == ["blk.1.ffn_up.weight: expected shape [512, 256], found [511, 256]"]
    assert found["metadata"] == ["manifest.json: tensors: blk.1.ffn_up.weight.shape[0]: expected 512, found 511"]


@pytest.mark.slow
def test_another_tokenizer(bad: Path) -> None:
    data = json.loads((bad / "tokenizer.json").read_text())
    data["model"]["merges"] = data["model"]["merges"][:-40]
    (bad / "tokenizer.json").write_text(json.dumps(data))
    found = findings(run(bad, options=ONE))
    assert {"metadata", "tokenizer"} <= set(found)
    assert found["metadata"][0].startswith("tokenizer.json: model.merges: expected [")
    assert "token " in found["tokenizer"][0]


@pytest.mark.slow
def test_a_changed_chat_template(bad: Path) -> None:
    (bad / "chat_template.jinja").write_text("{{ messages[0].content }}")
    found = findings(run(bad, options=ONE))
    assert list(found) == ["chat template"]
    assert found["chat template"][0].startswith("conversation 1: token 0: expected [")


@pytest.mark.slow
def test_a_changed_configuration(bad: Path) -> None:
    data = json.loads((bad / "genai_config.json").read_text())
    data["model"]["eos_token_id"] = [7]
    (bad / "genai_config.json").write_text(json.dumps(data))
    (found,) = findings(run(bad, options=ONE))["metadata"]
    assert found == "genai_config.json: model.eos_token_id: expected [2035, 2033], found [7]"


@pytest.mark.slow
def test_another_version_is_not_compared(bad: Path) -> None:
    tiny.edit_json(bad / "manifest.json", sampan="0.0.9")
    checks = {c["name"]: c for c in run(bad, options=ONE)["candidates"][0]["checks"]}
    assert checks["metadata"]["result"] == "not compared"
    assert checks["metadata"]["checked"] == "written by version 0.0.9"


@pytest.mark.slow
def test_a_folder_without_manifest(bad: Path) -> None:
    (bad / "manifest.json").unlink()
    report = run(bad, options=ONE)
    checks = {c["name"]: (c["result"], c["checked"]) for c in report["candidates"][0]["checks"]}
    assert checks["tensors"] == checks["metadata"] == ("not compared", "the folder has no manifest")
    assert 4.4 < report["candidates"][0]["bits_per_weight"] < 4.6
    assert kld(report) < 0.1
    with pytest.raises(InputError, match=r"--weights-only: expected a candidate whose manifest names its tensors"):
        run(bad, options=replace(ONE, weights_only=True))


# Hostile and refused


def _entry(model: onnx.ModelProto, key: str, value: str) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "/lm_head/weight")
    next(e for e in tensor.external_data if e.key == key).value = value


@pytest.mark.everyday("location-*")
@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("location", "../model.onnx.data", "expected external data inside the folder, found ../model.onnx.data"),
        ("location", "/etc/passwd", "expected external data inside the folder, found /etc/passwd"),
        ("location", "gone.data", "expected the data file gone.data in the folder, found no such file"),
        ("offset", "2638848", "expected 262144 bytes from 2638848, found a file model.onnx.data of 2638848 bytes"),
        ("offset", "-1", "offset: expected a number of bytes, found -1"),
        ("length", "7", "length: expected 262144 bytes for uint8 [2048, 8, 16], found 7"),
    ],
)
def test_hostile_external_data(key: str, value: str, line: str, bad: Path) -> None:
    graph(bad, lambda m: _entry(m, key, value))
    for command in (["validate", str(tiny.FIXTURE), str(bad)], ["inspect", str(bad)]):
        result = run_cli(*command)
        assert result.returncode == 2
        assert result.stdout == "" and result.stderr.count("\n") == 1
        assert "/lm_head/weight: " in result.stderr and result.stderr.endswith(line + "\n")


def test_a_graph_that_is_none(bad: Path) -> None:
    (bad / "model.onnx").write_bytes(b"\xff" * 99)
    with pytest.raises(InputError, match=r"model\.onnx: expected an ONNX graph, found bytes that protobuf cannot read"):
        read_graph(bad)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "q9"}, "type: expected one of f32, f16, u4_32, .* found q9"),
        ({"shape": [0]}, r"shape: expected sizes above 0, found \[0\]"),
        ({"at": -1}, "at and step: expected a first row and a distance of rows"),
        ({"at": 10**9}, "expected 256 rows from 1000000000, 1 apart, found 256 in "),
        ({"array": "/nothing/weight"}, "expected an external array /nothing/weight of uint8, .* found none"),
        ({"type": "f16"}, "expected an external array .* of float16, rows of 1024 bytes, found uint8"),
    ],
)
def test_hostile_manifests(entry: dict[str, Any], message: str, bad: Path) -> None:
    tensors = json.loads((bad / "manifest.json").read_text())["tensors"]
    tensors["blk.0.ffn_down.weight"] |= entry
    tiny.edit_json(bad / "manifest.json", tensors=tensors)
    with pytest.raises(InputError, match=rf"manifest\.json: blk\.0\.ffn_down\.weight.*{message}"):
        open_onnx(bad)


def test_options_that_do_not_fit(folder: Folders) -> None:
    with pytest.raises(InputError, match=r"--kv: expected f32, the cache of the ONNX folder .*, found f16"):
        run(folder("int4"), options=replace(ONE, kv="f16"))
    with pytest.raises(InputError, match="--blame: expected a checkpoint as REFERENCE for an ONNX folder"):
        run(folder("int4"), folder("fp32"), replace(ONE, blame=True))
    with pytest.raises(InputError, match=r"--blame: expected a candidate with quantised tensors, found .*fp32 without"):
        run(folder("fp32"), options=replace(ONE, blame=True))


def test_other_tokens_of_the_same_number_are_refused(
    folder: Folders, bad: Path, gguf: Callable[[str, str], Path]
) -> None:
    """Without a checkpoint whose tokenizer could name them: what the texts become tells."""
    data = json.loads((bad / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    a, b = "e", "n"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (bad / "tokenizer.json").write_text(json.dumps(data))
    for reference in (folder("int8"), gguf("trained", "f32")):
        with pytest.raises(InputError, match=r"bad: vocabulary: token \d+ of \w+: expected \d+, as the reference"):
            run(bad, reference, ONE)


@pytest.mark.slow
def test_blame_finds_the_tensor_that_was_harmed(folder: Folders, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(folder("int8"), tmp_path / "bad"))

    def harm(arrays: list[bytearray], _: Stored) -> None:
        arrays[0][:] = bytes(value ^ 0x10 for value in arrays[0])

    change(bad, "blk.1.ffn_up.weight", harm)
    blame = run(bad, options=replace(QUICK, blame=True))["blame"]
    for partition, group in (("kinds", "ffn_up.weight"), ("layers", "layer 1")):
        assert blame[partition][0]["group"] == group
        assert blame[partition][0]["share"] > 0.9
        assert 0.9 < blame[f"{partition}_sum"] < 1.1
    assert blame["keep"] == ["ffn_up.weight"]


def test_a_crash_is_a_failed_verdict(folder: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "CODE", aborting("candidate"))
    report = run(folder("int4"), options=replace(ONE, blame=True))
    assert report["verdict"] == "failed" and "blame" not in report
    assert report["candidates"][0]["decisions"][0]["text"].startswith("the engine's process ended by SIGABRT")


@pytest.mark.slow
def test_a_crash_in_blame_is_a_failed_verdict(folder: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise isolated.EngineDiedError("candidate", "the engine's process ended by SIGABRT while scoring")

    monkeypatch.setattr(blame, "drift_of", die)
    report = run(folder("int4"), options=replace(ONE, blame=True, limits=(verdict.Limit("kld", "mean", 9.0),)))
    assert report["verdict"] == "failed" and "blame" not in report
    last = text_report(report).splitlines()[-1]
    assert last.startswith("failed: ") and "--blame: the engine's process ended by SIGABRT" in last


# Around it


@pytest.mark.slow
def test_convert_validate_records_the_verdict(tmp_path: Path) -> None:
    out = tmp_path / "m"
    result = run_cli("convert", str(tiny.FIXTURE), "--to", "onnx", "--quant", "int8", "-o", str(out), "--validate")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"passed: {out}: ")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["validation"]["verdict"] == "passed"
    assert manifest["tensors"]["blk.0.attn_k.weight"] == {
        "type": "q8_0", "shape": [256, 256], "array": "/layers.0/attn/qkv_proj/weight", "at": 512, "step": 1
    }  # fmt: skip
