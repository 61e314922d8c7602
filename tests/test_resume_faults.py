"""Real conversions on a full disk, killed at any call that changes it, and with a damaged journal: the same bytes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from faults import KilledError, faults
from jobs import Files, quick, tmp_path, tree

from sampan.checkpoint import open_folder
from sampan.convert import fill
from sampan.convert.conversion import Conversion, convert, prepare
from sampan.errors import InputError
from sampan.job import JOURNAL, work_folder

__all__ = ["quick", "tmp_path"]  # fixtures of every test here
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gguf": ("gguf", "q8_0", {}),
    "split": ("gguf", "q8_0", {"split": 1_500_000}),
    "onnx": ("onnx", "int4", {}),
}
Run = Callable[..., Conversion]


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run()` converts, in few pieces and with a journal line behind every pause of the loop."""
    real = fill._convert

    def slow(*arguments: Any) -> Any:
        time.sleep(0.01)
        return real(*arguments)

    monkeypatch.setattr(fill, "RECORD_SECONDS", 0.0)
    monkeypatch.setattr(fill, "_convert", slow)
    to, quant, options = KINDS[request.param]

    def once(**more: bool) -> Conversion:
        c = prepare(open_folder(tiny.FIXTURE), tmp_path / "place" / "m", to, quant, jobs=2, **options)
        convert(c, **more)
        return c

    return once


def whole(run: Run, place: Path) -> Files:
    """What an undisturbed conversion gives; then the place is empty again."""
    run()
    files = tree(place)
    shutil.rmtree(place)
    return files


def disturbed(run: Run, at: int, fault: str) -> bool:
    """A run with a fault; returns whether that came."""
    with faults(at, fault) as injected:
        try:
            run()
        except KilledError:
            assert fault in ("kill", "torn")
        except InputError as e:
            assert fault in ("once", "full") and ("run again" in str(e) or "of free disk, found" in str(e)), e
    return injected.happened


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["torn", "once", "full"])
def test_a_fault_at_any_call(fault: str, run: Run, tmp_path: Path) -> None:
    """Every call at first, every third of the last, which commit, and every 15th between, which write weights."""
    place = tmp_path / "place"
    wanted = whole(run, place)
    with faults(10**9, fault) as counted:
        run()
    calls, at = counted.count, 0
    assert calls > 40
    while at < calls + 20:
        at += 1 if at < 9 else 3 if at > calls - 45 else 15
        shutil.rmtree(place, ignore_errors=True)
        if disturbed(run, at, fault):
            try:
                run()
            except InputError as e:
                assert "an existing" in str(e) and not (work_folder(place / "m") / JOURNAL).exists(), (at, e)
        assert tree(place) == wanted, at


@pytest.mark.everyday("gguf-torn", "onnx-full")
@pytest.mark.parametrize("fault", ["torn", "full"])
def test_a_fault_in_the_middle(fault: str, run: Run, tmp_path: Path) -> None:
    place = tmp_path / "place"
    wanted = whole(run, place)
    with faults(10**9, fault) as counted:
        run()
    shutil.rmtree(place)
    assert disturbed(run, counted.count // 2, fault)
    run()
    assert tree(place) == wanted


@pytest.mark.everyday("split")
def test_a_damaged_digit_in_the_journal(run: Run, tmp_path: Path) -> None:
    """Each digit of the finished items' numbers, and a line that claims them all: bytes would be missing."""
    place = tmp_path / "place"
    wanted = whole(run, place)
    with faults(10**9, "kill") as counted:
        run()
    at, lines = counted.count // 3, 0
    while lines < 3:  # the job and two lines of finished items
        at += 1
        shutil.rmtree(place, ignore_errors=True)
        assert disturbed(run, at, "kill")
        left = tree(place)
        name = next((n for n in left if n.endswith(JOURNAL)), "")
        lines = left.get(name, b"").count(b"\n")
    journal = left[name]
    assert b"commit" not in journal
    first = journal.index(b"\n") + 1
    spots = [i for i in range(first, len(journal)) if journal[i : i + 1].isdigit()][::60][:12]
    assert spots
    damaged = [journal[:i] + (b"1" if journal[i : i + 1] != b"1" else b"2") + journal[i + 1 :] for i in spots]
    claim = b'{"done": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "alive": [], "sha256": [], "errors": [], "ranges": []}\n'
    for other in (*damaged, journal + claim, journal + journal[first:]):
        shutil.rmtree(place)
        for path, data in left.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(other if path == name else data)
        run()
        assert tree(place) == wanted


def test_another_split_leaves_no_part_behind(tmp_path: Path) -> None:
    def parts(split: int | None) -> set[str]:
        c = prepare(open_folder(tiny.FIXTURE), tmp_path / "m.gguf", "gguf", "q8_0", jobs=2, split=split)
        convert(c, overwrite=True)
        assert {p.name for p in tmp_path.iterdir()} == {f.path.name for f in c.plan.files} | {"m.gguf.manifest.json"}
        return {f.path.name for f in c.plan.files}

    counts = [len(parts(split)) for split in (500_000, 1_500_000, None, 800_000)]
    assert len(set(counts)) == 4
