"""Headers of model cards as tools and people write them: none stops a conversion, none changes a weight."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import tiny
from conftest import to_gguf

from sampan.checkpoint import open_folder
from sampan.convert.card import read_card
from sampan.convert.conversion import prepare
from sampan.gguf import read_header

CARDS: dict[str, tuple[bytes, dict[str, object]]] = {
    "none": (b"# A model\n", {}),
    "empty": (b"---\n---\n", {}),
    "nothing between": (b"---\n\n---\n", {}),
    "keys without values": (b"---\nlicense:\ntags:\nbase_model: ~\n---\n", {}),
    "Norway": (b"---\nlanguage: no\n---\n", {"language": "no"}),
    "Norway in a list": (b"---\nlanguage:\n- en\n- no\n---\n", {"language": ["en", "no"]}),
    "numbers": (b"---\ntags: [2024, qwen]\nmodel_name: 7\n---\n", {"tags": ["2024", "qwen"], "model_name": "7"}),
    "a date": (b"---\nmodel_name: 2024-05-01\n---\n", {"model_name": "2024-05-01"}),
    "a path": (b"---\nbase_model: /home/me/Qwen3-0.6B\n---\n", {"base_model": "/home/me/Qwen3-0.6B"}),
    "objects": (b"---\ndatasets:\n- name: mine\n- other/one\n---\n", {"datasets": ["other/one"]}),
    "an object": (b"---\nbase_model: {name: Qwen/Qwen3-0.6B}\n---\n", {}),
    "a list of licences": (b"---\nlicense: [mit, apache-2.0]\n---\n", {}),
    "Windows": (b"---\r\nlicense: mit\r\n---\r\ntext", {"license": "mit"}),
    "a tab": (b"---\nlicense: mit\ntags:\n\t- x\n---\n", {"license": "mit", "tags": ["x"]}),
    "Latin-1": ("---\nlicense: mit\nauthor: Müller\n---\n".encode("latin-1"), {"license": "mit", "author": "M�ller"}),
    "unbalanced": (b"---\nlicense: mit\ntags: [a, b\nfoo: : bar\n---\n", {}),
    "a list": (b"---\n- a\n- b\n---\n", {}),
    "a text": (b"---\njust a text\n---\n", {}),
    "no end": (b"---\n" + b"a: b\n" * 50_000, {}),
    "aliases": (b"---\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n---\n", {}),
    "deep": (b"---\na: " + b"[" * 5000 + b"\n---\n", {}),
    "a NUL": (b"---\nlicense: m\0it\n---\n", {}),
    "another tag": (b"---\na: !!python/object:os.system x\nlicense: mit\n---\n", {"license": "mit", "a": "x"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_used_as_far_as_it_can_be(name: str, tmp_path: Path) -> None:
    raw, wanted = CARDS[name]
    (tmp_path / "README.md").write_bytes(raw)
    assert read_card(tmp_path)[0] == wanted


@pytest.mark.parametrize("name", CARDS)
def test_no_card_stops_a_conversion(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    (folder / "README.md").write_bytes(CARDS[name][0])
    prepare(open_folder(folder), tmp_path / "n.gguf", "gguf", "q8_0")


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    expected = {
        "unbalanced": "the model card is left out: ",
        "aliases": "an alias or anchor, which is not followed",
        "no end": "its header does not end within 65536 bytes",
        "objects": "of the model card, entries that are no texts are left out: datasets",
    }
    for name, text in expected.items():
        (folder / "README.md").write_bytes(CARDS[name][0])
        (note,) = prepare(open_folder(folder), tmp_path / "n.gguf", "gguf", "q8_0").notes
        assert text in note


def test_a_card_of_200_megabytes_is_not_read(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    with (folder / "README.md").open("wb") as f:
        f.write(b"---\nlicense: mit\n---\n")
        f.truncate(200_000_000)
    start = time.process_time()
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert time.process_time() - start < 10
    assert read_header(tmp_path / "m.gguf").metadata["general.license"].value == "mit"
