"""What comes from a file is printed as text: it moves no cursor, writes no line of its own and turns none around."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tiny
import watched
from onnx_peer import to_onnx
from validating import ONE, cache, run

from sampan import gguf as container
from sampan.gguf import Kind, Tensor, Value
from sampan.printable import printable, printable_json
from sampan.table import table
from sampan.validate.html import html_report
from sampan.validate.text import text_report

__all__ = ["cache"]  # a fixture of every test here

EVIL = "a\x1b]0;x\x07\x1b[2J\nerror: forged\r\x9b1A\u202egnp\u2066\u2028b\x7f\x00"
SHOWN = r"a\x1b]0;x\x07\x1b[2J\nerror: forged\r\x9b1A\u202egnp\u2066\u2028b\x7f\x00"


def clean(text: str) -> None:
    """Nothing in it that is not shown, but its own line ends."""
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    assert not any(line.startswith("error: forged") for line in text.split("\n"))


def test_printable() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("\ud800 and \udcff") == r"\ud800 and \udcff"
    for kept in ("首都　京", "नमस्\u200dते", "👩\u200d🔬", "café\u00a0x", r"\n", ""):
        assert printable(kept) == kept


def test_json_stays_exact() -> None:
    value = {EVIL: [EVIL, "首都", "𝄞\U000e0001", 1.5, None, "\\n"]}
    text = printable_json(json.dumps(value, indent=1, ensure_ascii=False))
    clean(text)
    assert json.loads(text) == value and "首都" in text and "𝄞" in text


def test_tables() -> None:
    assert table([[EVIL, 1], ["x", 22]], right="b").splitlines()[0] == f"{SHOWN}   1"


def save(folder: Path, names: list[str], shard: str) -> None:
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    raw = json.dumps(header).encode()
    (folder / shard).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4 * len(names)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint whose tensors, architecture and template are called so."""
    folder = tmp_path / "model"
    shutil.copytree(tiny.FIXTURE, folder)
    save(folder, [EVIL, "b"], "model.safetensors")
    return folder


def set_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_a_checkpoint(checkpoint: Path) -> None:
    set_config(checkpoint, architectures=[EVIL])
    result = watched.run("inspect", str(checkpoint), "--tensors")
    clean(result.out)
    assert result.code == 0 and result.err == "" and SHOWN in result.out
    result = watched.run("inspect", str(checkpoint), "--tensors", "--json")
    clean(result.out)
    data = json.loads(result.out)
    assert data["tensors"][0]["name"] == EVIL and data["architectures"] == [EVIL]


def index(folder: Path) -> None:
    shard = f"{EVIL.replace(chr(0), '')}.safetensors"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))


def damaged_shard(folder: Path) -> None:
    index(folder)
    (folder / f"{EVIL.replace(chr(0), '')}.safetensors").write_bytes(b"damaged: " + bytes(100))


ERRORS: dict[str, Callable[[Path], object]] = {
    "tensor": lambda f: None,
    "architecture": lambda f: set_config(f, architectures=[EVIL]),
    "activation": lambda f: set_config(f, hidden_act=EVIL),
    "quantisation": lambda f: set_config(f, quantization_config={"quant_method": EVIL}),
    "key": lambda f: set_config(f, quantization_config={"quant_method": "fp8", EVIL: 1}),
    "rope": lambda f: set_config(f, rope_scaling={"rope_type": EVIL}),
    "missing shard": index,
    "damaged shard": damaged_shard,
    "name of the folder": lambda f: f.rename(f.with_name(EVIL.replace("\0", ""))),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_one_error_line(kind: str, checkpoint: Path) -> None:
    ERRORS[kind](checkpoint)
    folder = next(checkpoint.parent.iterdir())
    result = watched.run("convert", str(folder), "-o", str(checkpoint.parent / "out" / "x.gguf"))
    assert result.code == 2 and result.out == ""
    clean(result.err)
    assert len(result.err.splitlines()) == 1 and result.err.startswith("error: "), result.err


def test_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    values = {"general.architecture": Value(Kind.STRING, EVIL), EVIL: Value(Kind.ARRAY, [EVIL], Kind.STRING)}
    path.write_bytes(container.encode(values, [Tensor(EVIL, (32,), 0, 0)]) + bytes(128))
    result = watched.run("inspect", str(path), "--tensors")
    clean(result.out)
    assert result.code == 0 and result.out.count("forged") >= 3
    clean((result := watched.run("inspect", str(path), "--tensors", "--json")).out)
    assert json.loads(result.out)[EVIL] == [EVIL]
    result = watched.run("validate", str(tiny.FIXTURE), str(path))
    assert result.code == 2 and len(result.err.splitlines()) == 1
    clean(result.err)


def test_an_onnx_folder(tmp_path: Path) -> None:
    to_onnx(tiny.FIXTURE, folder := tmp_path / "onnx", "int4")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    evil = EVIL.replace("\0", "")
    model.producer_name = model.graph.node[0].op_type = model.graph.input[0].name = evil
    model.graph.initializer[0].name = model.opset_import[0].domain = evil
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "manifest.json").write_text(json.dumps({"sampan": "0", "scheme": EVIL, "family": EVIL, "graph": EVIL}))
    result = watched.run("inspect", str(folder), "--tensors")
    clean(result.out)
    assert result.code == 0 and result.out.count("forged") >= 6


@pytest.mark.slow
def test_reports(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = tmp_path / f"{EVIL.replace(chr(0), '')}.gguf"
    shutil.copy(gguf("trained", "q4_0"), path)
    report = run(path, options=ONE)
    candidate = report["candidates"][0]
    candidate["checks"].append({"name": EVIL, "result": "failed", "checked": EVIL, "findings": [EVIL], "known": [EVIL]})
    candidate["decisions"] = [{"outcome": candidate["verdict"], "text": EVIL, "tokens": None}]
    for text in (text_report(report), html_report(report)):
        clean(text)
        assert text.count(r"\x1b[2J") >= 5
