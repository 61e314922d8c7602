"""Small pieces: sizes, tables, the container and the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sampan import gguf as container
from sampan.errors import InputError, brief
from sampan.table import table
from sampan.units import human, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("600M", 600_000_000),
        ("1.5G", 1_500_000_000),
        ("512MiB", 512 << 20),
        ("2kib", 2048),
        ("17", 17),
        ("3GB", 3 * 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--x") == size


def test_a_size_that_is_none() -> None:
    with pytest.raises(InputError, match=r"--x: expected a size such as 600M, 2G or 512MiB, found '12Q'"):
        parse_size("12Q", "--x")


def test_human() -> None:
    assert [human(n) for n in (0, 999, 1234, 45_600_000, 986_048_032, 1.2e13)] == [
        "0 B", "999 B", "1.23 kB", "45.6 MB", "986 MB", "12 TB",
    ]  # fmt: skip


def test_brief_keeps_messages_to_one_printable_line() -> None:
    assert brief("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert len(brief("x" * 1000)) == 120


def test_tables_line_up_with_wide_characters() -> None:
    assert table([["首都", 1], ["abcd", 22]], right="b") == "首都   1\nabcd  22"


def test_container_round_trip(tmp_path: Path) -> None:
    metadata = {
        "general.name": container.Value(container.Kind.STRING, "小船"),
        "a.flag": container.Value(container.Kind.BOOL, True),
        "a.count": container.Value(container.Kind.UINT32, 7),
        "a.list": container.Value(container.Kind.ARRAY, [1, -2], container.Kind.INT32),
        "a.names": container.Value(container.Kind.ARRAY, ["x", ""], container.Kind.STRING),
    }
    tensors = [container.Tensor("t", (3, 64), 8, 0), container.Tensor("u", (5,), 0, 224)]
    raw = container.encode(metadata, tensors)
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    header = container.read_header(path)
    assert header.metadata == metadata
    assert list(header.tensors) == tensors
    assert header.data_start == len(raw) and len(raw) % 32 == 0


def test_the_gguf_package_reads_our_files(gguf: Callable[[str, str], Path]) -> None:
    """An independent reader agrees about every key and tensor."""
    from gguf import GGUFReader

    path = gguf("trained", "q4_k_m")
    ours, theirs = container.read_header(path), GGUFReader(path)
    assert {t.name: (t.data_offset, tuple(reversed(t.shape.tolist()))) for t in theirs.tensors} == {
        t.name: (ours.data_start + t.offset, t.shape) for t in ours.tensors
    }
    for key, value in ours.metadata.items():
        shown = theirs.fields[key].contents()
        assert shown == value.value or shown == pytest.approx(value.value), key


def test_the_manifest(gguf: Callable[[str, str], Path]) -> None:
    import hashlib

    import tiny

    path = gguf("trained", "q4_k_m")
    manifest = json.loads(path.with_name(path.name + ".manifest.json").read_text())
    weights = (tiny.FIXTURE / "model.safetensors").read_bytes()
    assert manifest["source"]["sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert manifest["scheme"] == "q4_k_m" and manifest["family"] == "qwen3"
    assert manifest["files"] == {path.name: path.stat().st_size}
    assert manifest["tensors"]["blk.0.attn_v.weight"] == "q4_k"
    assert manifest["tensors"]["blk.3.attn_v.weight"] == "q6_k"
