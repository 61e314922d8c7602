"""ONNX folders made of links: a hub's cache is fine, a link out of a folder is not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import onnx
import pytest
import tiny
from conftest import run_cli
from onnx_peer import to_onnx

from sampan.errors import InputError
from sampan.validate.artifact import open_onnx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(tiny.FIXTURE, tmp_path_factory.mktemp("links") / "int4", "int4").artifact


def test_a_folder_of_links_into_a_hub_cache(folder: Path, tmp_path: Path) -> None:
    """As huggingface_hub lays a snapshot out: what `run` opens, `inspect` and `validate` open too."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for n, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(n))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(n))
    assert run_cli("inspect", str(snapshot)).returncode == 0
    assert open_onnx(snapshot).tensors.keys() == open_onnx(folder).tensors.keys()
    done = run_cli("run", str(snapshot), "Hello", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("place", "link", "location"),
    [
        ("private", "../../private", "model.onnx.data"),  # beside the blobs
        ("snapshots/other/x", "../other/x", "model.onnx.data"),  # another revision's
        ("blobs/x", "", "../../blobs/x"),  # no link at all
    ],
)
def test_a_cache_is_its_blobs_alone(place: str, link: str, location: str, folder: Path, tmp_path: Path) -> None:
    snapshot = Path(shutil.copytree(folder, tmp_path / "snapshots" / "abc"))
    for target in (tmp_path / "blobs" / "x", tmp_path / place):
        target.parent.mkdir(exist_ok=True, parents=True)
    (snapshot / "model.onnx.data").rename(tmp_path / place)
    if link:
        (snapshot / "model.onnx.data").symlink_to(link)
    model = onnx.load(snapshot / "model.onnx", load_external_data=False)
    for entry in (e for t in model.graph.initializer for e in t.external_data if e.key == "location"):
        entry.value = location
    onnx.save(model, snapshot / "model.onnx")
    with pytest.raises(InputError, match=f"expected external data inside the folder, found {re.escape(location)}$"):
        open_onnx(snapshot)


def test_a_folder_that_is_named_from_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_onnx(Path("..") / folder.name).tensors.keys() == open_onnx(folder).tensors.keys()


def test_a_link_out_of_a_folder(folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    (out / "model.onnx.data").rename(tmp_path / "elsewhere")
    (out / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"expected external data inside the folder, found model\.onnx\.data"):
        open_onnx(out)
