"""Nothing that we did not make is removed or replaced, whatever it is called."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from faults import KilledError, faults
from jobs import (
    BYSTANDERS,
    IDENTITY,
    Files,
    calls_until_decided,
    killed,
    manifest,
    produce,
    put,
    put_older,
    quick,
    tmp_path,
    tree,
    whole,
)

from sampan.artifact import OutputFile, write_atomically
from sampan.errors import InputError, UnfinishedError
from sampan.job import JOURNAL, open_job, work_folder

__all__ = ["quick", "tmp_path"]  # fixtures of every test here


@pytest.mark.parametrize("content", ["thesis.txt", "data/thesis.txt", "journal", "a link", "a file", "a folder"])
def test_a_folder_of_somebody_else_under_our_name(content: str, tmp_path: Path) -> None:
    work = tmp_path / "x.gguf.unfinished"
    if content == "a link":
        put(tmp_path / "elsewhere", {JOURNAL: b"", "data/thesis.txt": b"years"})
        work.symlink_to(tmp_path / "elsewhere")
    elif content == "a file":
        work.write_bytes(b"years")
    elif content == "a folder":
        (work / JOURNAL).mkdir(parents=True)
    else:
        put(work, {content: b"years"})
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"x\.gguf\.unfinished: .* no folder of ours with a {JOURNAL} in it: move it"):
        produce(tmp_path, "single")
    assert tree(tmp_path) == before


def test_a_file_that_somebody_put_into_our_folder_stays(tmp_path: Path) -> None:
    killed(tmp_path)
    note = tmp_path / "x.gguf.unfinished" / "note.txt"
    note.write_bytes(b"mine")
    produce(tmp_path, "single")
    assert tree(tmp_path) == whole("single") | {"x.gguf.unfinished/note.txt": b"mine"}


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"x/manifest.json": b'{"manifest_version": 3, "name": "an extension"}', "x/a.js": b"1"}, "other files in it"),
        ({"x/manifest.json": b"\xff", "x/a.js": b"1"}, "a folder with other files in it"),
        ({"x/manifest.json": b'{"sampan": "1", "files": {"a/b": 1}}', "x/a.js": b"1"}, "with other files in it"),
        ({"x/notes.txt": b"1"}, "a folder with other files in it"),
        ({"x": b"1"}, "expected a folder name for the output, found a file"),
    ],
)
def test_a_folder_that_is_no_artifact_is_never_replaced(files: Files, text: str, tmp_path: Path) -> None:
    put(tmp_path, files)
    with pytest.raises(InputError, match=text):
        produce(tmp_path, "folder", overwrite=True)
    assert tree(tmp_path) == files


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", "model.onnx/notes.txt"])
def test_a_users_file_in_an_artifact_is_never_removed(name: str, tmp_path: Path) -> None:
    put_older(tmp_path, "folder")
    if name.startswith("model"):
        (tmp_path / "x" / "model.onnx").unlink()
    put(tmp_path / "x", {name: b"mine"})
    before = tree(tmp_path)
    named = name.partition("/")[0]
    with pytest.raises(InputError, match=rf"x: --overwrite would replace that artifact, but {named} in its folder is"):
        produce(tmp_path, "folder", overwrite=True)
    assert tree(tmp_path) == before


def test_a_users_file_that_comes_meanwhile(tmp_path: Path) -> None:
    """Before the decision, and behind it: the job waits until it has been moved."""
    put_older(tmp_path, "folder")
    last = calls_until_decided(tmp_path, "folder", True)
    for at in (last - 1, last + 1, last + 2):
        shutil.rmtree(tmp_path / "x")
        shutil.rmtree(work_folder(tmp_path / "x"), ignore_errors=True)
        put_older(tmp_path, "folder")
        with faults(at, "kill"), pytest.raises(KilledError):
            produce(tmp_path, "folder", overwrite=True)
        place = tmp_path / "x" if (tmp_path / "x").exists() else work_folder(tmp_path / "x") / "old"
        (place / "notes.txt").write_bytes(b"mine")
        for _ in range(2):
            with pytest.raises(InputError, match=r"notes\.txt (in its folder )?is no part of"):
                produce(tmp_path, "folder", overwrite=True)
        (note,) = tmp_path.rglob("notes.txt")
        assert note.read_bytes() == b"mine"
        note.unlink()
        produce(tmp_path, "folder", overwrite=True)
        assert tree(tmp_path) == whole("folder") | BYSTANDERS


def test_an_output_that_comes_meanwhile(tmp_path: Path) -> None:
    """Behind the first look at its name."""
    files = (OutputFile(tmp_path / "x.gguf", b"new", 3),)
    for _ in range(2):
        with (
            pytest.raises(UnfinishedError, match=r"x\.gguf: expected a new file name, found an existing file; use --o"),
            open_job(tmp_path / "x.gguf", files, IDENTITY, overwrite=False) as job,
        ):
            (tmp_path / "x.gguf").write_bytes(b"mine")
            job.commit(manifest("single", {"x.gguf": 3}))
        assert (tmp_path / "x.gguf").read_bytes() == b"mine"
        (tmp_path / "x.gguf").unlink()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"x-00005-of-00005.gguf": b"another size"},
            r"x-00005-of-00005\.gguf: .* names a file of 5 bytes there, which",
        ),
        (
            {"x.gguf.manifest.json": b'{"name": "mine"}'},
            r"x\.gguf\.manifest\.json: .* no manifest of ours: move it awa",
        ),
        ({"x.gguf.manifest.json": b""}, r"no manifest of ours: move it away, or choose another name"),
    ],
)
def test_what_an_older_manifest_does_not_name_stays(changes: Files, text: str, tmp_path: Path) -> None:
    put_older(tmp_path, "split-of-5")
    put(tmp_path, changes)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=text):
        produce(tmp_path, "split", overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_or_a_device_is_never_replaced(link: bool, tmp_path: Path) -> None:
    """Whoever writes to /dev/null as root, to see how long it takes, keeps it."""
    out = pipe = tmp_path / "model.gguf"
    if link:
        pipe = tmp_path / "pipe"
        out.symlink_to(pipe)
    os.mkfifo(pipe)
    with (
        pytest.raises(InputError, match="expected a file name for the output, found a device or a pipe"),
        open_job(out, (OutputFile(out, b"", 1),), IDENTITY, overwrite=True),
    ):
        pass
    assert pipe.is_fifo() and not work_folder(out).exists()


def test_unfinished_files_that_somebody_moved_to_another_disk(tmp_path: Path) -> None:
    """A link in their place is named, and what lies behind it stays."""
    out, moved = tmp_path / "model.gguf", tmp_path / "moved"

    def run() -> None:
        with open_job(out, (OutputFile(out, b"x", 1),), IDENTITY, overwrite=False):
            raise KilledError

    with pytest.raises(KilledError):
        run()
    (work_folder(out) / "data").rename(moved)
    (work_folder(out) / "data").symlink_to(moved)
    with pytest.raises(UnfinishedError, match=r"data: expected the folder that we made, found a link: put the folder "):
        run()
    assert (moved / out.name).read_bytes() == b"x"


def test_a_strangers_manifest_removes_nothing(tmp_path: Path) -> None:
    """It may name anything; only files that carry the output's name are taken for its parts."""
    put(tmp_path, {"thesis.txt": b"years", "sub/x.gguf": b"years"})
    names = {"thesis.txt": 5, "../place/thesis.txt": 5, "": 0, "..": 5, "x\0": 1, "/etc/passwd": 1}
    for named in (names, {"thesis.txt": 5}, {"thesis.txt": 5, "..": 1}):
        (tmp_path / "x.gguf.manifest.json").write_bytes(manifest("single", named))
        try:
            produce(tmp_path, "single", overwrite=True)
        except InputError as e:
            assert "no manifest of ours" in str(e)
        assert (tmp_path / "thesis.txt").read_bytes() == (tmp_path / "sub" / "x.gguf").read_bytes() == b"years"


def test_names_that_no_finished_folder_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "x").symlink_to("real")
    with pytest.raises(InputError, match=r"x is a link, and the finished folder takes its place: name the folder it"):
        produce(tmp_path, "folder")
    (tmp_path / "x").unlink()
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(InputError, match="x is a mount point, which no finished folder can replace: name a folder ins"):
        produce(tmp_path, "folder")
    monkeypatch.undo()
    for name in (".", ".."):
        with pytest.raises(InputError, match="the output needs a name of its own: add one, as in"):
            open_job(Path(name), (OutputFile(Path(name) / "a", b"", 1, True),), IDENTITY, overwrite=True).__enter__()
    produce(tmp_path, "folder")


def test_a_small_file_is_written_beside_what_is_there(tmp_path: Path) -> None:
    put(tmp_path, BYSTANDERS | {"x.gguf.manifest.json": b"before", "x.gguf.manifest.json.part": b"mine"})
    before = tree(tmp_path)
    for fault in ("once", "full"):
        for at in range(1, 5):
            with faults(at, fault) as injected:
                try:
                    write_atomically(tmp_path / "x.gguf.manifest.json", b"behind")
                except OSError:
                    assert tree(tmp_path) == before
            if not injected.happened:
                break
    write_atomically(tmp_path / "x.gguf.manifest.json", b"behind")
    assert tree(tmp_path) == before | {"x.gguf.manifest.json": b"behind"}
