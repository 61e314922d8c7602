"""Killed at any byte, continued, and the same bytes in the end; the lock and the journal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import run_cli, to_gguf

from sampan.checkpoint import open_folder
from sampan.convert import fill
from sampan.convert.conversion import convert, prepare
from sampan.job import JOURNAL, work_folder
from sampan.journal import Journal

# Converts slowly enough to be killed on the way: every item waits.
SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits it ignored
from sampan.convert import fill
real = fill._convert
def slow(*args):
    time.sleep(0.2)
    return real(*args)
fill._convert, fill.RECORD_SECONDS = slow, 0.1
from sampan.cli import main
main()
"""


def start_slow(source: Path, out: Path, *options: str, quant: str = "q8_0") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, "convert", str(source), "--quant", quant, "-o", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def journal_lines(out: Path) -> int:
    journal = work_folder(out) / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def rewrite_journal(out: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Other entries with the checksums that belong to them."""
    path = work_folder(out) / JOURNAL
    entries = change([json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()])
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    journal = Journal(fd)
    for entry in entries:
        journal.append(entry)
    os.close(fd)


def kill_on_the_way(source: Path, out: Path, lines: int = 4, quant: str = "q8_0") -> None:
    process = start_slow(source, out, quant=quant)
    wait_for(lambda: journal_lines(out) >= lines or process.poll() is not None)
    assert process.poll() is None, "it finished before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()


def test_a_killed_run_continues_and_gives_the_same_bytes(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    kill_on_the_way(tiny.FIXTURE, out)
    lines = (work_folder(out) / JOURNAL).read_text().splitlines()
    entries = [json.loads(line.partition(" ")[2]) for line in lines[1:]]
    done = sum(len(e["done"]) for e in entries)
    assert done > 0
    converted = []
    real = fill._convert

    def count(item: fill.Item, *rest: object) -> object:
        converted.append(item.number)
        return real(item, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "_convert", count)
        conversion = to_gguf(tiny.FIXTURE, out, "q8_0")
    total = conversion.work.count
    assert len(converted) == total - done
    assert out.read_bytes() == gguf("trained", "q8_0").read_bytes()
    mine, theirs = (
        json.loads(p.with_name(p.name + ".manifest.json").read_text()) for p in (out, gguf("trained", "q8_0"))
    )
    assert mine["source"] == theirs["source"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "m.gguf.manifest.json"]


@pytest.mark.slow
def test_a_journal_cut_at_any_byte(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    kill_on_the_way(tiny.FIXTURE, out, 6)
    work = work_folder(out)
    journal, part = work / JOURNAL, work / "data" / out.name
    saved = journal.read_bytes(), part.read_bytes()
    for cut in (1, 40, len(saved[0]) // 2, len(saved[0]) - 1, len(saved[0])):
        part.parent.mkdir(parents=True, exist_ok=True)
        journal.write_bytes(saved[0][:cut])
        part.write_bytes(saved[1])
        to_gguf(tiny.FIXTURE, out, "q8_0")
        assert out.read_bytes() == gguf("trained", "q8_0").read_bytes(), cut
        out.unlink()
        assert not work.exists()


@pytest.mark.slow
@pytest.mark.parametrize("other", ["options", "source", "version"])
def test_another_job_starts_again_and_says_so(other: str, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny.FIXTURE, tmp_path / tiny.FIXTURE.name))
    out = tmp_path / "m.gguf"
    kill_on_the_way(source, out)
    quant = "q8_0"
    if other == "options":
        quant = "q4_0"
    elif other == "source":
        os.utime(source / "model.safetensors", ns=(1, 1))
    else:
        rewrite_journal(out, lambda entries: [entries[0] | {"version": "0.0.1"}, *entries[1:]])
    result = run_cli("convert", str(source), "--quant", quant, "-o", str(out))
    assert result.returncode == 0, result.stderr
    assert f"started again: an unfinished output was found, but with another {other}" in result.stderr
    assert out.stat().st_size == gguf("trained", quant).stat().st_size


def test_a_second_run_on_a_busy_output(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    first = start_slow(tiny.FIXTURE, out)
    wait_for(lambda: journal_lines(out) >= 2)
    second = run_cli("convert", str(tiny.FIXTURE), "--quant", "q8_0", "-o", str(out))
    assert first.poll() is None
    assert second.returncode == 2
    assert second.stderr.strip().endswith(
        "m.gguf: another run is writing this output; wait for it or choose another name"
    )
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert run_cli("convert", str(tiny.FIXTURE), "--quant", "q8_0", "-o", str(out)).returncode == 0


def test_interrupt_keeps_the_work(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    process = start_slow(tiny.FIXTURE, out)
    wait_for(lambda: journal_lines(out) >= 3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == "error: interrupted; run the same command again to continue"
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "m.gguf.unfinished/data/m.gguf", "m.gguf.unfinished/sampan.journal"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_jobs_and_memory(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    for jobs, memory in ((1, 10**6), (5, 10**8)):
        conversion = prepare(
            open_folder(model("qwen3_moe")), tmp_path / f"{jobs}.gguf", "gguf", "q4_k_m", jobs=jobs, max_memory=memory
        )
        assert conversion.work.buffers(jobs) <= memory
        convert(conversion)
        assert (tmp_path / f"{jobs}.gguf").read_bytes() == gguf("qwen3_moe", "q4_k_m").read_bytes()


def test_a_shard_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "model"))
    conversion = prepare(open_folder(source), tmp_path / "m.gguf", "gguf", "q8_0")
    os.truncate(source / "model.safetensors", 5_000_000)
    with pytest.raises(
        Exception, match=r"model\.safetensors: expected 7351624 bytes, found 5000000 bytes; the file changed"
    ):
        convert(conversion)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
