"""Outputs get their names whole or not at all, after any kill, on a full disk and with a damaged journal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import KilledError, faults
from jobs import (
    BYSTANDERS,
    calls_until_decided,
    killed,
    out_of,
    produce,
    put,
    put_older,
    quick,
    tmp_path,
    tree,
    whole,
)  # fmt: skip

from sampan.errors import InputError, UnfinishedError
from sampan.job import JOURNAL, work_folder
from sampan.journal import Journal

__all__ = ["quick", "tmp_path"]  # fixtures of every test here

SCENES = [
    ("single", None), ("single", "single"), ("single", "split-of-5"), ("split", None), ("split", "single"),
    ("split", "split-of-5"), ("split", "split-of-3"), ("folder", None), ("folder", "folder"),
]  # fmt: skip


EVERY_DAY = [SCENES[n] for n in (0, 2, 5, 7, 8)]


@pytest.fixture(
    params=[pytest.param(s, id=f"{s[0]}-over-{s[1]}", marks=[] if s in EVERY_DAY else pytest.mark.slow) for s in SCENES]
)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], tuple[Path, str, bool]]]:
    """`scene()` → a folder with an older artifact and bystanders, the kind to produce, and whether to overwrite."""
    kind, older = request.param
    place = tmp_path / "place"

    def fresh() -> tuple[Path, str, bool]:
        shutil.rmtree(place, ignore_errors=True)
        put_older(place, older)
        return place, kind, older is not None

    yield fresh


Scene = Callable[[], tuple[Path, str, bool]]


def test_a_new_output_takes_the_place_of_the_older_and_leaves_all_else(scene: Scene) -> None:
    """No part of another split, no older manifest, nothing of the work; and every bystander."""
    place, kind, overwrite = scene()
    before = tree(place)
    if overwrite:
        with pytest.raises(InputError, match=r"found an existing (file|artifact); use --overwrite to replace it"):
            produce(place, kind)
        assert tree(place) == before
    produce(place, kind, overwrite=overwrite)
    assert tree(place) == whole(kind) | BYSTANDERS
    assert not list(place.rglob("*.unfinished"))


@pytest.mark.parametrize(
    "fault", ["torn", "once", *(pytest.param(k, marks=pytest.mark.slow) for k in ("kill", "full"))]
)
def test_a_fault_at_every_call_that_changes_the_disk(fault: str, scene: Scene) -> None:
    """The same command finishes the job; what has a name is whole meanwhile."""
    at, resumed = 0, 0
    while True:
        at += 1
        place, kind, overwrite = scene()
        older = tree(place)
        state = faults(at, fault)
        with state as injected:
            try:
                produce(place, kind, overwrite=overwrite)
            except KilledError:
                assert fault in ("kill", "torn")
            except InputError as e:
                assert fault in ("full", "once"), at
                assert isinstance(e, UnfinishedError) or "of free disk, found" in str(e), e
        named = {n: d for n, d in tree(place).items() if ".unfinished/" not in n}
        for name, data in named.items():
            assert data in (older.get(name), whole(kind).get(name)), (at, name)
        if not injected.happened:
            break
        try:
            resumed += produce(place, kind, overwrite=overwrite)
        except InputError as e:
            assert "an existing" in str(e) and not (work_folder(out_of(kind, place)) / JOURNAL).exists(), (at, e)
        assert tree(place) == whole(kind) | BYSTANDERS, at
        assert not list(place.rglob("*.unfinished")), at
    assert at > 25
    assert resumed > at // 3


def test_a_kill_of_the_run_that_finishes(scene: Scene) -> None:
    """Two kills, the second at every call of the run that takes the first one's decision up."""
    first = second = 0
    while True:
        second += 1
        place, kind, overwrite = scene()
        first = first or calls_until_decided(place, kind, overwrite)
        place, kind, overwrite = scene()
        with faults(first + 1, "kill"), pytest.raises(KilledError):
            produce(place, kind, overwrite=overwrite)
        with faults(second, "kill") as injected:
            try:
                produce(place, kind, overwrite=overwrite)
            except KilledError:
                assert injected.happened
        if injected.happened and (work_folder(out_of(kind, place)) / JOURNAL).exists():
            produce(place, kind, overwrite=overwrite)
        assert {n: d for n, d in tree(place).items() if ".unfinished" not in n} == whole(kind) | BYSTANDERS, second
        if not injected.happened:
            break
    assert second > 3


# The journal


def damages(journal: bytes) -> Iterator[tuple[str, bytes]]:
    """Every byte changed in three ways, every cut, every line dropped, repeated, moved and appended."""
    for i, byte in enumerate(journal):
        for other in {byte ^ 1, byte ^ 0x80, ord("\n"), ord("7")} - {byte}:
            yield f"byte {i} is {other}", journal[:i] + bytes([other]) + journal[i + 1 :]
        yield f"cut at {i}", journal[:i]
    lines = journal.splitlines(keepends=True)
    for i, line in enumerate(lines):
        yield f"line {i} left out", b"".join(lines[:i] + lines[i + 1 :])
        for j in range(len(lines) + 1):
            yield f"line {i} again at {j}", b"".join([*lines[:j], line, *lines[j:]])
            rest = lines[:i] + lines[i + 1 :]
            yield f"line {i} moved to {j}", b"".join([*rest[:j], line, *rest[j:]])
    for more in (b"{}\n", b"\n", b"\0" * 512, b'{"done": [[0, 15]]}\n', b"x" * 40):
        yield f"{more[:10]!r} appended", journal + more


def test_damage_of_a_journal_is_noticed(tmp_path: Path) -> None:
    """What is read is the beginning of what was written, or nothing at all."""
    journal, _ = killed(tmp_path)
    path = tmp_path / "journal"
    entries: list[Any] = []
    for damage, damaged in [("none", journal), *damages(journal)]:
        path.write_bytes(damaged)
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        found = Journal(fd).read()
        os.close(fd)
        entries = entries or (found or [])
        assert found is None or found == entries[: len(found)], damage
        assert found != entries or damage == "none" or damaged.startswith(journal), damage
    assert len(entries) == 4


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_journal_never_gives_a_wrong_byte(every: int, tmp_path: Path) -> None:
    place = tmp_path / "place"
    journal, data = killed(place)
    for what, damaged in list(damages(journal))[::every]:
        shutil.rmtree(place)
        put(place, data)
        (place / "x.gguf.unfinished" / JOURNAL).write_bytes(damaged)
        produce(place, "single")
        assert tree(place) == whole("single"), what


def test_a_journal_that_is_whole_is_continued(tmp_path: Path) -> None:
    """Else the damaged ones would show nothing. Its items are not written again: here they are spoilt."""
    place = tmp_path / "place"
    killed(place)
    part = place / "x.gguf.unfinished" / "data" / "x.gguf"
    part.write_bytes(part.read_bytes().replace(b"01234", b"spoil"))
    assert produce(place, "single")
    assert (place / "x.gguf").read_bytes() == b"header of x.gguf" + b"spoil56789abcdefghij"


def test_another_version_of_the_data_is_not_continued(tmp_path: Path) -> None:
    place = tmp_path / "place"
    for change in (lambda p: p.unlink(), lambda p: p.write_bytes(b"short"), lambda p: (p.unlink(), p.symlink_to("/x"))):
        killed(place)
        change(place / "x.gguf.unfinished" / "data" / "x.gguf")
        assert not produce(place, "single")
        assert tree(place) == whole("single")
        shutil.rmtree(place)
