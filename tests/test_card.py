"""Headers of model cards as tools and people write them: none stops a conversion, none changes a weight."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import tiny
import watched
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
    "mappings": (
        b"---\ndatasets:\n- name: mine\n  version: 2\n- other/one\n---\n",
        {"datasets": [{"name": "mine", "version": "2"}, "other/one"]},
    ),
    "a mapping": (b"---\nbase_model: {name: Mine}\n---\n", {"base_model": [{"name": "Mine"}]}),
    "lists in a list": (b"---\ntags: [a, [b], {c: d}]\n---\n", {"tags": ["a"]}),
    "a list for a name": (b"---\nmodel_name: [a]\nlicense: mit\n---\n", {"license": "mit"}),
    "a list of licences": (b"---\nlicense: [mit, apache-2.0]\n---\n", {"license": ["mit", "apache-2.0"]}),
    "marks of aliases in a text": (
        b"---\ndescription: R &D of *some* words\nwidget:\n- text: a *b\n---\n",
        {"description": "R &D of *some* words"},
    ),
    "an anchor": (b"---\nlicense: &a mit\n---\n", {"license": "mit"}),
    "text that is null": (b"---\nlicense: 'null'\n---\n", {"license": "null"}),
    "half a surrogate pair": (b'---\nauthor: "\\ud800"\n---\n', {}),
    "a byte order mark": (b"\xef\xbb\xbf---\nlicense: mit\n---\n\xe9\xff", {"license": "mit"}),
    "a table of benchmarks": (b"---\nlicense: mit\n" + b"# 0.5\n" * 30_000 + b"---\n", {"license": "mit"}),
    "numbers out of range": (
        b"---\nversion: 0x" + b"f" * 9000 + b"\nmodel_name: 2024-99-99\n---\n",
        {"version": "0x" + "f" * 9000, "model_name": "2024-99-99"},
    ),
    "Windows": (b"---\r\nlicense: mit\r\n---\r\ntext", {"license": "mit"}),
    "a tab": (b"---\nlicense: mit\ntags:\n\t- x\n---\n", {"license": "mit", "tags": ["x"]}),
    "Latin-1": ("---\nlicense: mit\nauthor: Müller\n---\n".encode("latin-1"), {"license": "mit", "author": "M�ller"}),
    "unbalanced": (b"---\nlicense: mit\ntags: [a, b\nfoo: : bar\n---\n", {}),
    "a list": (b"---\n- a\n- b\n---\n", {}),
    "a text": (b"---\njust a text\n---\n", {}),
    "no end": (b"---\n" + b"a: b\n" * 60_000, {}),
    "aliases": (b"---\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n---\n", {}),
    "deep": (b"---\na: " + b"[" * 21 + b"]" * 21 + b"\n---\n", {}),
    "a NUL": (b"---\nlicense: m\0it\n---\n", {}),
    "other tags": (
        b"---\nauthor: !!python/object:os.system x\nversion: !!int a\n---\n",
        {"author": "x", "version": "a"},
    ),
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


def test_a_name_that_is_no_text_does_not_lose_the_card(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    tiny.edit_json(folder / "config.json", _name_or_path=7)
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n")
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert b"general.license" in (tmp_path / "m.gguf").read_bytes()


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    expected = {
        "unbalanced": "the model card is left out: ",
        "aliases": "an alias, which is not followed",
        "no end": "its header does not end within 262144 bytes",
        "deep": "its header is nested deeper than 20 levels",
        "a list": "its header is a list, not keys and values",
        "lists in a list": "of the model card, entries that are no texts are left out: tags",
        "a list for a name": "of the model card, entries that are no texts are left out: model_name",
    }
    for name, text in expected.items():
        (folder / "README.md").write_bytes(CARDS[name][0])
        (note,) = prepare(open_folder(folder), tmp_path / "n.gguf", "gguf", "q8_0").notes
        assert text in note and note.isprintable() and len(note) < 300
    for name in ("empty", "nothing between", "keys without values", "mappings", "marks of aliases in a text"):
        (folder / "README.md").write_bytes(CARDS[name][0])
        assert prepare(open_folder(folder), tmp_path / "n.gguf", "gguf", "q8_0").notes == []


def test_what_the_gguf_package_reads_of_it(tmp_path: Path) -> None:
    """Its own reader finds lists of licences and mappings of datasets as its converter writes them."""
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    card = b"---\nlicense: [mit, apache-2.0]\ntags: [2024, a]\nlanguage: no\ndatasets:\n- name: mine\n---\n"
    (folder / "README.md").write_bytes(card)
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    found = {k: fields[f"general.{k}"].contents() for k in ("license", "tags", "languages", "dataset.0.name")}
    assert found == {"license": "mit,apache-2.0", "tags": ["2024", "a"], "languages": ["no"], "dataset.0.name": "mine"}


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no end": (lambda p: (p.write_bytes(b"---\n"), os.truncate(p, 2 * 10**8)), "its header does not end within"),
    "zeros": (lambda p: p.symlink_to("/dev/zero"), "this is a device, not a regular file"),
    "fifo": (os.mkfifo, "this is a FIFO, not a regular file"),
    "loop": (lambda p: p.symlink_to(p.name), "a link that leads back to itself"),
    "nested": (lambda p: p.write_bytes(b"---\na: " + b"[" * 200_000 + b"\n---\n"), "nest"),  # libyaml or we
    "nested blocks": (lambda p: p.write_bytes(b"---\n" + b"- " * 100_000 + b"\n---\n"), "nested deeper than 20"),
    "tags": (lambda p: p.write_bytes(b"---\ntags: [" + b"a," * 100_000 + b"]\n---\n"), "are left out: tags"),
    "models": (lambda p: p.write_bytes(b"---\nbase_model: [" + b"a," * 100_000 + b"]\n---\n"), "out: base_model"),
    "keys": (lambda p: p.write_bytes(b"---\n" + b"".join(b"k%d: 1\n" % i for i in range(20_000)) + b"---\n"), ""),
    "dashes": (lambda p: p.write_bytes(b"---\nbase_model: " + b"a-" * 100_000 + b"\n---\n"), ""),
}  # fmt: skip


@pytest.mark.everyday("zeros", "nested", "tags")
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(kind: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    make, note = BOMBS[kind]
    (folder / "README.md").unlink()
    make(folder / "README.md")
    result = watched.run("convert", str(folder), "--plan", "-o", str(tmp_path / "x.gguf"))
    assert result.code == 0 and result.cpu < 2 and result.peak < 10**9, (result.err[-2000:], result.cpu, result.peak)
    assert note in result.out


def test_no_words_in_a_header_stop_a_plan(tmp_path: Path) -> None:
    """Random ones, among them what YAML and the gguf package treat in their own way."""
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    rng = random.Random(1)
    keys = ["base_model", "datasets", "tags", "license", "model_name", "version", "language"]
    words = [
        *keys, ": ", ":", "- ", "-", "\n", "\n  ", "[", "]", "{", "}", ", ", "'", '"', "&a ", "*a", "!!int ",
        "!!binary ", "<<: ", "| ", "> ", "? ", "#", "null", "~", "no", "3", "1e400", "0x1f", "2024-01-01", "1:30",
        "a/b", "7B", "-1K", "https://huggingface.co/a/b-7B-v1", "²M", "٣B", "é", "\x85", "\u2028", "\ufeff",
        '"\\ud800"', '"\\0"', "...",
    ]  # fmt: skip
    source, outcomes = open_folder(folder), set()
    for _ in range(40):
        lines = [f"{k}: {''.join(rng.choices(words, k=rng.randrange(8)))}\n" for k in rng.choices(keys, k=3)]
        (folder / "README.md").write_text(f"---\n{''.join(lines)}---\n", encoding="utf-8")
        notes = prepare(source, tmp_path / "x.gguf", "gguf", "q8_0").notes
        outcomes.add("the model card is left out" in "".join(notes))
    assert outcomes == {True, False}  # both kinds were among them


def test_a_card_of_200_megabytes_is_not_read(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    with (folder / "README.md").open("wb") as f:
        f.write(b"---\nlicense: mit\n---\n")
        f.truncate(200_000_000)
    start = time.process_time()
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert time.process_time() - start < 10
    assert read_header(tmp_path / "m.gguf").metadata["general.license"].value == "mit"
