"""GGUF files and ONNX folders that are small on the disk and large in memory: one line, two seconds, one gigabyte."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import onnx
import pytest
import tiny
import watched
from onnx import helper
from onnx_peer import to_onnx
from spm import field, varint
from test_bombs import GB, JSONS, NO_FILE, held, sparse

from sampan import gguf
from sampan.wire import BLOB, read_message


def text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def header(rest: bytes, tensors: int = 0, keys: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def array(item: gguf.Kind, count: int) -> bytes:
    return text(b"k") + struct.pack("<IIQ", gguf.Kind.ARRAY, item, count)


# the start of a file that goes on with zeros, its size, and the line that refuses it
GGUFS = {
    "array of numbers": (header(array(gguf.Kind.UINT8, 10**9)), 2 * GB, "k: 1000000000 values are more than a header"),
    "array of texts": (header(array(gguf.Kind.STRING, 10**9)), 9 * GB, "k: 1000000000 values are more than a header"),
    "text": (header(text(b"k") + struct.pack("<IQ", gguf.Kind.STRING, 2 * GB)), 3 * GB, "its header is larger than"),
    "name": (header(struct.pack("<Q", 2 * GB)), 3 * GB, "its header is larger than 200000000 bytes; is it damaged?"),
    "tensors": (header(b"", 10**9, 0), 30 * GB, "expected at most 500000 tensors, found 1000000000"),
    "equal tensors": (header(b"", 400_000, 0), GB, "expected each tensor name once, found  twice"),
    "equal keys": (header(b"", 0, 10**9), 30 * GB, "expected each metadata key once, found it twice"),
    "dimensions": (header(text(b"t") + struct.pack("<I", 2**31), 1, 0), GB, "t: expected at most 4 dimensions"),
}  # fmt: skip


@pytest.mark.everyday("inspect-*")
@pytest.mark.parametrize("kind", GGUFS)
@pytest.mark.parametrize("command", ["inspect", "validate"])
def test_gguf(command: str, kind: str, tmp_path: Path) -> None:
    start, size, line = GGUFS[kind]
    sparse(path := tmp_path / "x.gguf", size, start)
    argv = ("inspect", str(path)) if command == "inspect" else ("validate", str(tiny.FIXTURE), str(path))
    assert line in held(watched.run(*argv), 2)


@pytest.mark.slow
def test_gguf_with_all_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header(array(gguf.Kind.STRING, 1_900_000) + (text(b"\xf0\x9d\x84\x9e" * 6)) * 1_900_000))
    result = watched.run("inspect", str(path))
    assert result.code == 0 and result.peak < GB and result.cpu < 5, result


@pytest.mark.parametrize("kind", ["zeros", "fifo", "loop"])
def test_no_gguf(kind: str, tmp_path: Path) -> None:
    NO_FILE[kind][0](tmp_path / "x.gguf")
    for command in (("inspect",), ("validate", str(tiny.FIXTURE)), ("run",)):
        held(watched.run(*command, str(tmp_path / "x.gguf")), 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to_onnx(tiny.FIXTURE, folder := tmp_path_factory.mktemp("onnx") / "int4", "int4")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of an int4 folder, to be harmed."""
    return Path(shutil.copytree(made, tmp_path / "bad"))


ONNX_FILES = ("model.onnx", "model.onnx.data", "manifest.json", "genai_config.json", "tokenizer.json",
              "tokenizer_config.json", "generation_config.json", "chat_template.jinja")  # fmt: skip


@pytest.mark.everyday("model.onnx-zeros", "model.onnx.data-fifo", "manifest.json-loop", "tokenizer.json-*")
@pytest.mark.parametrize("kind", ["zeros", "fifo", "loop"])
@pytest.mark.parametrize("name", ONNX_FILES)
def test_no_small_file(name: str, kind: str, folder: Path) -> None:
    NO_FILE[kind][0](folder / name)
    for command in (("inspect",), ("validate", str(tiny.FIXTURE))):
        held(watched.run(*command, str(folder)), *((0, 2) if command[0] == "inspect" else (2,)))


@pytest.mark.everyday("manifest.json-nested", "genai_config.json-objects")
@pytest.mark.parametrize("kind", ["lists", "nested", "objects"])
@pytest.mark.parametrize("name", ["manifest.json", "genai_config.json", "tokenizer.json"])
def test_json(name: str, kind: str, folder: Path) -> None:
    (folder / name).write_bytes(JSONS[kind])
    held(watched.run("inspect", str(folder)), 0, 2)
    if kind != "objects":  # those are valid, and nothing reads them
        held(watched.run("validate", str(tiny.FIXTURE), str(folder)), 2)


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # a node whose attribute is a graph
    return field(7, graph)


def shape(dims: list[int]) -> bytes:
    model = onnx.load_from_string(field(7, field(1, b"")))
    model.graph.initializer.append(helper.make_tensor("w", onnx.TensorProto.FLOAT, [0], b"", raw=True))
    model.graph.initializer[0].dims[:] = dims
    return model.SerializeToString()


GRAPHS = {
    "empty nodes": (lambda: field(7, field(1, b"") * 20_000_000), "more than 1500000 fields"),
    "empty attributes": (lambda: field(7, field(1, field(5, b"") * 20_000_000)), "more than 1500000 fields"),
    "empty texts": (lambda: field(7, field(1, field(1, b"") * 20_000_000)), "more than 1500000 fields"),
    "dimensions": (lambda: field(7, field(5, field(1, b"\1" * 40_000_000))), "more than 600 MB of memory"),
    "thousand dimensions": (lambda: shape([2**62] * 100_000), "w: expected a shape of at most 64 dimensions"),
    "nested": (lambda: nested(5000), "its messages are nested deeper than 60 levels; is it damaged?"),
    "not protobuf": (lambda: b"\xff" * 10_000_000, "expected an ONNX graph, found bytes that protobuf cannot read"),
}  # fmt: skip


@pytest.mark.everyday("*dimensions", "nested", "not protobuf")
@pytest.mark.parametrize("kind", GRAPHS)
def test_graph(kind: str, folder: Path) -> None:
    make, line = GRAPHS[kind]
    (folder / "model.onnx").write_bytes(make())
    assert line in held(watched.run("inspect", str(folder)), 2)


def test_a_graph_of_two_gigabytes(folder: Path) -> None:
    """Of zeros, and of a weight inside the graph, which is not brought into memory."""
    sparse(folder / "model.onnx", 2**31 - 1)
    assert "bytes that protobuf cannot read" in held(watched.run("inspect", str(folder)), 2)
    size = 2_000_000_000
    weight = b"\x08" + b"\x80\xca\xb5\xee\x01" + b"\x10\x01" + b"\x42\x01w" + b"\x4a" + b"\x80\xa8\xd6\xb9\x07"
    graph = field(1, field(4, b"Identity") + field(1, b"w") + field(2, b"logits"))
    inner = graph + b"\x2a" + varint(size + len(weight)) + weight
    start = b"\x3a" + varint(size + len(inner)) + inner
    sparse(folder / "model.onnx", size + len(start), start)
    (folder / "manifest.json").unlink()
    result = watched.run("inspect", str(folder), "--json", "--tensors")
    held(result, 0)
    assert json.loads(result.out)["tensors"][0] == {"name": "w", "shape": [500_000_000], "type": "float", "bytes": size}


def test_a_graph_is_read_as_protobuf_reads_it(made: Path, tmp_path: Path) -> None:
    """All of it but the large raw data of tensors, wherever they stand."""
    model = onnx.load(made / "model.onnx", load_external_data=False)
    for size in (0, BLOB - 1, BLOB, 3 * BLOB):
        raw = os.urandom(size)
        tensor = helper.make_tensor(f"w{size}", onnx.TensorProto.UINT8, [size], raw, raw=True)
        model.graph.initializer.append(tensor)
        model.graph.node.append(helper.make_node("Constant", [], [f"c{size}"], value=tensor))
    (path := tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    read_message(path, found := onnx.ModelProto())
    assert found != model
    for tensor in [*model.graph.initializer, *(n.attribute[0].t for n in model.graph.node if n.op_type == "Constant")]:
        if len(tensor.raw_data) >= BLOB:
            tensor.ClearField("raw_data")
    assert found == model
