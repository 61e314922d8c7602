"""ONNX folders made of links: a hub's cache is fine, a link out of a folder is not."""

from __future__ import annotations

import shutil
from pathlib import Path

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


def test_a_link_out_of_a_folder(folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    (out / "model.onnx.data").rename(tmp_path / "elsewhere")
    (out / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"expected external data inside the folder, found model\.onnx\.data"):
        open_onnx(out)
