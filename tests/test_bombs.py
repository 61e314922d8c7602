"""Files that are small on the disk and large in memory, or no files at all: one line, two seconds, one gigabyte."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import watched

GB = 10**9
SECONDS = 4  # of an idle processor: two, and room for how far the speed that was measured beside it is off
Break = Callable[[Path], object]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the trained fixture to damage."""
    return Path(shutil.copytree(tiny.FIXTURE, tmp_path / "model"))


def plan(folder: Path, name: str) -> watched.Result:
    """Plan a conversion of a folder whose file `name` was harmed."""
    if name == "model.safetensors.index.json":  # read only where no single file stands beside it
        (folder / "model.safetensors").unlink()
    return watched.run("convert", str(folder), "--plan", "-o", str(folder.parent / "x.gguf"))


def held(result: watched.Result, *codes: int) -> str:
    """The line on stderr, once time, memory, exit code and form were right."""
    assert result.code in codes, (result.code, result.err[-2000:])
    assert result.cpu < SECONDS and result.peak < GB, (result.cpu, result.peak)
    lines = result.err.splitlines()
    if result.code == 2:
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 1000, result.err[:2000]
    return lines[0] if lines else ""


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """A file of `size` bytes that takes no room; what follows `start` is zero."""
    path.write_bytes(start)
    os.truncate(path, size)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def link_to(target: str) -> Break:
    def replace(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return replace


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


NO_FILE = {
    "zeros": (link_to("/dev/zero"), "this is a device, not a regular file"),
    "fifo": (fifo, "this is a FIFO, not a regular file"),
    "loop": (lambda p: link_to(p.name)(p), "a link that leads back to itself"),
    "sparse": (lambda p: sparse(p, 3 * GB), "3 GB is more than the"),
}  # fmt: skip
SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "model.safetensors.index.json", "model.safetensors",
)  # fmt: skip


@pytest.mark.everyday(
    "config.json-*", "tokenizer.json-fifo", "chat_template.jinja-zeros", "*index.json-sparse", "model.safetensors-loop"
)
@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize("name", SMALL)
def test_no_small_file(name: str, kind: str, copy: Path) -> None:
    make, line = NO_FILE[kind]
    make(copy / name)
    if (name, kind) == ("model.safetensors", "sparse"):  # no limit for weights: a header of no bytes is read
        line = "header: expected JSON"
    found = held(plan(copy, name), 2)
    assert f"{copy / name}: {line}" in found


JSONS = {
    "lists": b"[" + b"[]," * 3_000_000 + b"[]]",
    "nested": b"[" * 3_000_000 + b"]" * 3_000_000,
    "unclosed": b'{"a":' * 1_500_000,
    "objects": b'{"model_type":[' + b'{"a":1},' * 1_100_000 + b"1]}",
    "digits": b'{"vocab_size":' + b"9" * 4_000_000 + b"}",
}


@pytest.mark.everyday(
    "config.json-lists",
    "config.json-digits",
    "tokenizer_config.json-nested",
    "tokenizer_config.json-unclosed",
    "*index.json-objects",
)
@pytest.mark.parametrize("kind", JSONS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_json(name: str, kind: str, copy: Path) -> None:
    (copy / name).write_bytes(JSONS[kind])
    held(plan(copy, name), 2)


@pytest.mark.slow
@pytest.mark.parametrize("value", [b"[]", b"[[[[[[1]]]]]]", b'{"a":1}', b'"\xf0\x9d\x84\x9e"', b"1.5"])
@pytest.mark.parametrize("size", [12, 60, 95])
def test_large_json(value: bytes, size: int, copy: Path) -> None:
    """Either side of the limits of size and memory, in the kind of file that may be largest."""
    count = size * 10**6 // (len(value) + 1)
    (copy / "tokenizer.json").write_bytes(b'{"model":[' + b",".join([value] * count) + b"]}")
    result = watched.run("convert", str(copy), "--plan", "-o", str(copy.parent / "x.gguf"))
    assert result.code == 2 and result.peak < GB and result.cpu < SECONDS, (result.err[:500], result.cpu, result.peak)


def tensors(header: bytes, data: int = 8) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(data)


ENTRY = '"%s": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
HEADERS = {
    "duplicates": (
        "{" + ", ".join([ENTRY % f"t{i}" for i in range(50_000)] * 2) + "}",
        "expected each name once in the header, found t0 twice",
    ),
    "dimensions": (
        '{"t": {"dtype": "F32", "data_offsets": [0, 8], "shape": [' + ", ".join([str(2**62)] * 400_000) + "]}}",
        "t: expected at most 64 dimensions, found 400000",
    ),
    "long-entry": ('{"t": [' + ", ".join("1" * 500_000) + "]}", "t: expected dtype, shape and data_offsets, found [1"),
    "long-name": ('{"' + "\U0001d11e" * 2_000_000 + '": []}', "expected dtype, shape and data_offsets, found []"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_header(kind: str, copy: Path) -> None:
    header, line = HEADERS[kind]
    (copy / "model.safetensors").write_bytes(tensors(header.encode()))
    assert line in held(watched.run("inspect", str(copy)), 2)


def test_safetensors_header_of_100_mb(copy: Path) -> None:
    sparse(copy / "model.safetensors", 100_000_016, struct.pack("<Q", 100_000_000))
    assert "header: expected JSON" in held(watched.run("inspect", str(copy)), 2)


@pytest.mark.everyday("*-gguf")
@pytest.mark.parametrize("to", ["gguf", "onnx"])
@pytest.mark.parametrize(
    ("name", "key", "value", "line"),
    [
        ("generation_config.json", "top_k", [1], "generation_config.json: top_k: expected a number, found [1]"),
        ("generation_config.json", "top_k", 2**64, "top_k: expected a number, found 18446744073709551616"),
        ("generation_config.json", "top_k", 1.5, "generation_config.json: top_k: expected a whole number, found 1.5"),
        ("generation_config.json", "temperature", float("nan"), "temperature: expected a number, found nan"),
        ("tokenizer_config.json", "chat_template", [0, 1], "chat_template: neither a text nor named texts: [0, 1]"),
        ("tokenizer.json", "added_tokens", 7, "tokenizer.json: added_tokens: expected a list, found 7"),
    ],
)
def test_values_of_another_kind(name: str, key: str, value: object, line: str, to: str, copy: Path) -> None:
    """Found by the fuzz targets: each was an internal error in one of the formats."""
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(copy / name, **{key: value})
    assert line in held(watched.run("convert", str(copy), "--plan", "--to", to, "-o", str(copy.parent / "x.gguf")), 2)


CONFIGS = {
    "vocabulary": {"vocab_size": 2**31},
    "layers": {"num_hidden_layers": 10_000},
    "experts": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4096,
        "num_experts_per_tok": 4, "moe_intermediate_size": 64, "num_hidden_layers": 10_000,
    },
    "kinds of layers": {"layer_types": ["full_attention"] * 500_000},
    "architectures": {"architectures": ["x" * 100] * 50_000},
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_counts_of_a_config(command: str, kind: str, copy: Path) -> None:
    edit_json(copy / "config.json", **CONFIGS[kind])
    if command == "inspect":
        held(watched.run("inspect", str(copy)), 0)
    else:
        held(watched.run("convert", str(copy), "--plan", "-o", str(copy.parent / "x.gguf")), 2)
