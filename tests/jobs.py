"""What the tests of jobs share: outputs of a few bytes, older artifacts in their place, and names that are not ours."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import KilledError, faults

from sampan.artifact import OutputFile, manifest_bytes
from sampan.job import JOURNAL, open_job, work_folder

IDENTITY = {"version": "1", "options": ["q8_0", 3]}
STEP = 5  # bytes of an item
Files = dict[str, bytes]
# kind → name and bytes of its files behind their headers; `x-…` are parts of a split, `x/…` files of a folder
KINDS: dict[str, Files] = {
    "single": {"x.gguf": b"0123456789abcdefghij"},
    "split": {f"x-0000{n}-of-00003.gguf": bytes([65 + n]) * 10 for n in (1, 2, 3)},
    "folder": {"x/model.onnx": b"", "x/model.onnx.data": b"abcdefghijklmno", "x/tokenizer.json": b""},
}
OLDER: dict[str, Files] = {
    "single": {"x.gguf": b"older"},
    "split-of-5": {f"x-0000{n}-of-00005.gguf": b"older" for n in (1, 2, 3, 4, 5)},
    "split-of-3": {f"x-0000{n}-of-00003.gguf": b"older" for n in (1, 2, 3)},
    "folder": {"x/model.onnx": b"older", "x/model.onnx.data": b"older", "x/chat_template.jinja": b"older"},
}
BYSTANDERS = {  # names that a program could take for its own
    "x.gguf.part": b"1", "x.gguf.journal": b"2", "x.gguf.shard": b"3", "x.gguf.old": b"4", "x.old/thesis": b"5",
    "x.part/thesis": b"6", "x-00001-of-00004.gguf": b"7", "x.journal": b"8", "x-00002-of-00003.gguf.part": b"9",
    "x.manifest.json": b"10",
}  # fmt: skip


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: thousands of files come and go here."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of an unguessable name in it
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls a plug: what was written is there."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)


def out_of(kind: str, place: Path) -> Path:
    return place / ("x" if kind == "folder" else "x.gguf")


def produce(place: Path, kind: str, *, overwrite: bool = False) -> bool:
    """What every conversion does with a job, an item of a few bytes at a time; returns whether it was resumed."""
    files = tuple(
        OutputFile(place / name, f"header of {name}".encode(), len(f"header of {name}") + len(data), kind == "folder")
        for name, data in KINDS[kind].items()
    )
    with open_job(out_of(kind, place), files, IDENTITY, overwrite=overwrite) as job:
        if job.finished:
            return True
        done = {tuple(item) for entry in job.records for item in entry["done"]}
        for n, (file, data) in enumerate(zip(files, KINDS[kind].values(), strict=True)):
            for at in range(0, len(data), STEP):
                if (n, at) not in done:
                    os.pwrite(job.fds[n], data[at : at + STEP], len(file.header) + at)
                    job.record({"done": [(n, at)]})
        job.commit(manifest(kind, {f.path.name: f.size for f in files}))
    return bool(done)


def manifest(kind: str, sizes: dict[str, int]) -> bytes:
    return manifest_bytes({"sampan": "1", "kind": kind, "files": sizes})


def put(place: Path, files: Files) -> None:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def put_older(place: Path, older: str | None) -> None:
    put(place, BYSTANDERS)
    if older is not None:
        put(place, OLDER[older])
        sizes = {Path(name).name: len(data) for name, data in OLDER[older].items()}
        where = place / ("x/manifest.json" if older == "folder" else "x.gguf.manifest.json")
        where.write_bytes(manifest(older, sizes))


def tree(place: Path) -> Files:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if not p.is_dir()}


def whole(kind: str) -> Files:
    files = {name: f"header of {name}".encode() + data for name, data in KINDS[kind].items()}
    where = "x/manifest.json" if kind == "folder" else "x.gguf.manifest.json"
    return files | {where: manifest(kind, {Path(name).name: len(data) for name, data in files.items()})}


def calls_until_decided(place: Path, kind: str, overwrite: bool) -> int:
    """The number of the call that makes the decision durable."""
    journal = work_folder(out_of(kind, place)) / JOURNAL
    for at in range(1, 1000):
        shutil.rmtree(work_folder(out_of(kind, place)), ignore_errors=True)
        with faults(at, "kill"), pytest.raises(KilledError):
            produce(place, kind, overwrite=overwrite)
        if journal.exists() and b'"commit"' in journal.read_bytes():
            return at
    raise AssertionError


def killed(place: Path, kind: str = "single") -> tuple[bytes, Files]:
    """The journal and the data of a run that was killed behind two items: the others are zeros."""
    place.mkdir(exist_ok=True)
    at, seen = 0, 0
    while seen < 4:  # the job, two items, and a third
        at += 1
        shutil.rmtree(place / "x.gguf.unfinished", ignore_errors=True)
        with faults(at, "kill"), pytest.raises(KilledError):
            produce(place, kind)
        path = place / "x.gguf.unfinished" / JOURNAL
        seen = path.read_bytes().count(b"\n") if path.exists() else 0
    return path.read_bytes(), {n: d for n, d in tree(place).items() if "/data/" in n}
