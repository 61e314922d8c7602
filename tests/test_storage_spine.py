"""Quantised checkpoints through the shared machinery: memory, kills, the audit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import encoders
import numpy as np
import pytest
from conftest import Pair, to_gguf
from test_resume import kill_on_the_way

from sampan.checkpoint import open_folder
from sampan.convert import work
from sampan.convert.binding import Bound, Piece
from sampan.convert.conversion import convert, prepare
from sampan.convert.encoding import buffer_size, read_parts
from sampan.convert.quantization import read_storage
from sampan.validate.artifact import open_gguf
from sampan.validate.audit import audit


@pytest.mark.slow
@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_the_bytes_do_not_depend_on_jobs_and_memory(name: str, pair: Pair, tmp_path: Path) -> None:
    encoded = pair(name)[0]
    to_gguf(encoded, tmp_path / "m.gguf", "native")
    for jobs, memory in ((1, 60_000), (5, 10**8)):
        out = tmp_path / f"{jobs}.gguf"
        conversion = prepare(open_folder(encoded), out, "gguf", "native", jobs=jobs, max_memory=memory)
        assert conversion.work.buffers(jobs) <= memory
        convert(conversion)
        assert out.read_bytes() == (tmp_path / "m.gguf").read_bytes()


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_rows_from_anywhere(name: str, pair: Pair) -> None:
    """Any rows decode alone as they do together: heads of latent attention are cut out of the middle of blocks."""
    checkpoint = open_folder(pair(name)[0])
    fds = [os.open(s.path, os.O_RDONLY) for s in checkpoint.shards if s.path]
    stored = read_storage(checkpoint)["model.layers.1.mlp.up_proj.weight"]

    def rows(start: int, count: int) -> np.ndarray:
        reads = stored.encoding.reads(stored, start, count)
        buffers = read_parts(stored, reads, fds, np.empty(buffer_size(reads), np.uint8))
        out = np.empty((count, stored.columns), np.float32)
        stored.encoding.decode(stored, buffers, start, out)
        return out

    whole = rows(0, stored.shape[0])
    for start, count in ((0, 1), (1, 6), (7, 2), (120, 40), (127, 1), (128, 130), (285, 3)):
        np.testing.assert_array_equal(rows(start, count), whole[start : start + count])
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("name", ["fp8-block", "gptq", "awq"])
def test_each_byte_is_needed_once(name: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are read once in all, and in few reads; scales hardly more."""
    monkeypatch.setattr(work, "CHUNK_VALUES", 128 * 288)
    conversion = prepare(open_folder(pair(name)[0]), tmp_path / "m.gguf", "gguf", "q8_0", jobs=1)
    codes = scales = 0
    pieces: dict[int, tuple[Bound, Piece]] = {}
    for shard in range(len(conversion.work.by_shard)):
        for item in conversion.work.items(shard):
            stored = item.piece.stored
            if stored.encoding.name == "plain":
                continue
            pieces[item.unit] = item.tensor.bound, item.piece
            first, *rest = stored.encoding.reads(stored, item.first_row, item.rows)
            codes += first.total
            scales += sum(r.total for r in rest)
    assert codes == sum(p.info.nbytes for _, p in pieces.values())
    held = sum(part.info.nbytes for _, p in pieces.values() for part in p.stored.parts[1:])
    assert held <= scales <= 2 * held


def test_a_killed_run_continues(pair: Pair, tmp_path: Path) -> None:
    encoded = pair("gptq")[0]
    out = tmp_path / "m.gguf"
    kill_on_the_way(encoded, out)
    conversion = prepare(open_folder(encoded), out, "gguf", "q8_0", jobs=2)
    assert convert(conversion).records
    to_gguf(encoded, tmp_path / "other.gguf", "q8_0")
    assert out.read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_a_killed_run_keeps_what_it_measured(pair: Pair, tmp_path: Path) -> None:
    import json

    encoded = pair("fp8-block")[0]
    out = tmp_path / "m.gguf"
    kill_on_the_way(encoded, out, quant="native")
    assert convert(prepare(open_folder(encoded), out, "gguf", "native", jobs=2)).records
    to_gguf(encoded, tmp_path / "other.gguf", "native")
    ours, theirs = (json.loads((tmp_path / f"{n}.gguf.manifest.json").read_text())["lossless"] for n in ("m", "other"))
    assert ours["exact"] == theirs["exact"] and ours["changed"].keys() == theirs["changed"].keys()
    for name, difference in ours["changed"].items():
        assert difference == pytest.approx(theirs["changed"][name], rel=1e-5)


def test_a_shard_of_scales_that_changed_starts_again(pair: Pair, tmp_path: Path) -> None:
    source = Path(shutil.copytree(pair("int4")[0], tmp_path / "m"))
    out = tmp_path / "m.gguf"
    kill_on_the_way(source, out)
    os.utime(source / "model-00002-of-00002.safetensors", ns=(1, 1))
    assert not convert(prepare(open_folder(source), out, "gguf", "q8_0", jobs=2)).records


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_the_audit_reads_what_is_stored(name: str, pair: Pair, tmp_path: Path) -> None:
    encoded = pair(name)[0]
    to_gguf(encoded, tmp_path / "m.gguf", "native")
    found = audit(open_folder(encoded), open_gguf(tmp_path / "m.gguf"))
    assert found.findings == []
    exact = (name.startswith(("int4", "mxfp4")) and name != "int4-zeros") or name.endswith("-sym")
    worst = max(t.relative for t in found.tensors)
    assert worst == 0 if exact else 0 < worst < 0.003


def test_the_audit_finds_ignored_scales(pair: Pair, tmp_path: Path) -> None:
    """A converter that takes the codes for the values."""
    encoded = pair("fp8-block")[0]
    tensors, _ = encoders.read(encoded)
    codes = {k: v for k, v in tensors.items() if not k.endswith("_scale_inv")}
    codes = {k: v.astype(np.float32) for k, v in codes.items()}
    encoders.write(encoded, tmp_path / encoded.name, codes, 1, None)
    to_gguf(tmp_path / encoded.name, tmp_path / "m.gguf", "q8_0")
    findings = audit(open_folder(encoded), open_gguf(tmp_path / "m.gguf")).findings
    assert len(findings) == 14 and all("far from the checkpoint" in f for f in findings)
