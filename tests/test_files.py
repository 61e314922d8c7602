"""Small files of strangers: regular files only, up to a limit, JSON in bounded memory."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sampan import files
from sampan.errors import InputError


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p: link(p, "/dev/zero"), "this is a device, not a regular file; put the file itself there"),
        (os.mkfifo, "this is a FIFO, not a regular file; put the file itself there"),
        (Path.mkdir, "this is a folder, not a regular file; put the file itself there"),
        (listen, "this is a socket, not a regular file; put the file itself there"),
        (lambda p: link(p, p.name), "a link that leads back to itself; put the file itself there"),
        (lambda p: link(p, "nothing"), "a link to a file that does not exist; put the file itself there"),
    ],
    ids=["device", "fifo", "folder", "socket", "loop", "dangling"],
)
@pytest.mark.parametrize("read", [files.read_bytes, files.read_start, files.read_json_if_there, files.size_of])
def test_only_regular_files(make: Callable[[Path], object], line: str, read: Callable[..., object], tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make(path := Path("config.json"))
    with pytest.raises(InputError) as caught:
        read(path, 4) if read is files.read_start else read(path)
    assert str(caught.value) == f"config.json: {line}"


def test_no_file(tmp_path: Path) -> None:
    assert files.read_json_if_there(tmp_path / "config.json") == {}
    with pytest.raises(InputError, match=r"config\.json: expected a file, found none; is the folder complete\?"):
        files.read_json(tmp_path / "config.json")
    with pytest.raises(InputError, match="config\\.json\0: cannot be read: embedded null byte"):
        files.read_bytes(tmp_path / "config.json\0")


@pytest.mark.parametrize(("name", "limit"), [("config.json", 10_000_000), ("chat_template.jinja", 1_000_000)])
def test_a_limit_for_each_kind(name: str, limit: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch()
    os.truncate(path, limit)
    assert len(files.read_bytes(path)) == limit
    os.truncate(path, 300 * 10**6)
    with pytest.raises(InputError, match=r"300 MB is more than the 1.* MB that such a file may have; is it the right"):
        files.read_bytes(path)
    assert files.read_start(path, 5) == b"\0" * 5


def test_text_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes("né".encode("latin-1"))
    with pytest.raises(InputError, match=r"jinja: byte 1 is not UTF-8; save the file as UTF-8"):
        files.read_text(path)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"[" * 101 + b"]" * 101, "x: this JSON is nested deeper than 100 levels; is it the right file?"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "x: this JSON is nested deeper than 100 levels; is it the right file?"),
        (b'["' + b"[" * 200 + b'", ' + b"[1]," * 90 + b"[" * 101 + b"]" * 102, "x: this JSON is nested deeper"),
        (b"[" + b"[{}]," * 5_000_000 + b"[]]", "x: this JSON would take about 2.05 GB of memory, more than the 700 MB"),
        (b"[1, 2", "x: expected JSON, found Expecting ',' delimiter"),
        (b'{"a": "\xff"}', "x: expected JSON, found 'utf-8' codec can't decode byte 0xff in position 7"),
        (rb'{"a": "\ud800"}', "x: expected JSON, found 'utf-8' codec can't encode character"),
        (b"1" * 5000, "x: expected JSON, found Exceeds the limit (4300 digits)"),
        (b"", "x: expected JSON, found Expecting value"),
    ],
)
def test_json_that_is_refused(raw: bytes, line: str) -> None:
    with pytest.raises(InputError) as caught:
        files.parse_json(raw, "x")
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    "value",
    [
        {"a": "[" * 500, '"' + "[{" * 200 + "\\": ['\\"', "\\\\", '"[', "]"]},
        json.loads("[" * 100 + "]" * 100),
        {"pair": "\U0001f600", "text": "\\ud800"},
        ["[[", "", "]]", {"": [[], {}]}],
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_that_is_read(value: object, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert files.parse_json(raw, "x") == value
    assert files.parse_json(b"\xef\xbb\xbf" + raw, "x") == value
