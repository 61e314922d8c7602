"""Hubs, repositories and tokens that give no checkpoint: one clear line for everything that goes wrong."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub
from hub_shell import (
    EXPIRED,
    INDEX,
    MEMBER,
    REPO,
    SHARDS,
    SINGLE,
    STRANGER,
    Shell,
    edited,
)

from sampan.checkpoint import open_folder
from sampan.errors import InputError
from sampan.hub import is_hub_id, open_source

# Repositories that cannot be converted


def test_an_index_that_names_a_missing_shard(
    sharded: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path
) -> None:
    folder = edited(sharded, tmp_path / "repo")
    (folder / SHARDS[1]).unlink()
    hub = serve(folder)
    line = sampan.refusal(hub.url)
    assert line == f"{REPO}: {INDEX}: expected the shard {SHARDS[1]} in the repository, found no such file"
    assert not hub.of(SHARDS[0]), "refused before a weight is fetched"


@pytest.mark.parametrize("file", ["tokenizer.json", SHARDS[1]])
def test_a_listed_file_that_is_missing(file: str, sharded: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(sharded)
    hub.faults.missing.add(file)
    line = sampan.refusal(hub.url)
    assert line == f"{REPO}: {file}: expected the file that the repository lists, found none (404)"


@pytest.mark.parametrize(
    ("gone", "line"),
    [
        ("config.json", "expected a config.json, found none; is this a model repository?"),
        (SINGLE, f"expected {SINGLE} or {INDEX}, found only pickles, which are never opened"),
    ],
)
def test_a_repository_without_what_is_needed(
    gone: str, line: str, single: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path
) -> None:
    folder = edited(single, tmp_path / "repo")
    (folder / gone).unlink()
    hub = serve(folder)
    assert sampan.refusal(hub.url) == f"{REPO}: {line}"
    assert {r.file for r in hub.requests} <= {"", "config.json"}


def test_a_damaged_shard(sharded: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(sharded)
    hub.faults.damaged.add(SHARDS[1])
    data = (sharded / SHARDS[1]).read_bytes()
    listed, found = (hashlib.sha256(d).hexdigest() for d in (data, data[:-1] + bytes([data[-1] ^ 1])))
    line = sampan.refusal(hub.url)
    path, _, rest = line.partition(": ")
    assert Path(path).name == SHARDS[1]
    assert rest == f"expected SHA-256 {listed} as the hub lists, found {found}; delete the file and run again"

    hub.faults.damaged.clear()
    Path(path).unlink()
    hub.requests.clear()
    sampan.convert(hub)
    assert sum(r.sent for r in hub.of(SHARDS[1]) if r.storage) == len(data)
    assert not hub.of(SHARDS[0]), "the good shard is kept"


# Access


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(
    single: Path, serve: Callable[..., Hub], sampan: Shell
) -> None:
    hub = serve(single, tokens=(MEMBER,), private=True, members=frozenset({MEMBER}))
    sampan.convert(hub, HF_TOKEN=MEMBER)
    assert {r.headers.get("authorization") for r in hub.requests if not r.storage} == {"Bearer hf_member"}
    result = sampan(hub.url, "inspect", REPO, HF_TOKEN=MEMBER, HF_HOME=str(sampan.home / "other"))
    assert result.returncode == 0, result.stderr
    stored = [r for r in hub.requests if r.storage]
    assert [r.status for r in stored] == [200, 206], "both the download and the range request went there"
    assert not any("authorization" in r.headers for r in stored)


HINT = "set HF_TOKEN or run `hf auth login`"


@pytest.mark.parametrize("token", ["", STRANGER])
def test_a_private_repository(token: str, single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(single, tokens=(MEMBER, STRANGER), private=True, members=frozenset({MEMBER}))
    line = sampan.refused(hub.url, "inspect", REPO, **({"HF_TOKEN": token} if token else {}))
    expected = "no such repository, or a private one without access: check the name; for a private repository "
    assert line == f"{REPO}: {expected}{HINT}"
    assert [r.status for r in hub.requests] == [404 if token else 401]


@pytest.mark.parametrize("token", ["", STRANGER])
def test_a_gated_repository(token: str, single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(single, tokens=(MEMBER, STRANGER), gated=True, members=frozenset({MEMBER}))
    line = sampan.refused(hub.url, "inspect", REPO, **({"HF_TOKEN": token} if token else {}))
    expected = "this repository is gated: ask for access on its page, then set HF_TOKEN to a token that has it"
    assert line == f"{REPO}: config.json: {expected}, or run `hf auth login`"
    assert hub.requests[-1].status == (403 if token else 401)


def test_a_token_that_is_not_valid(single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    line = sampan.refused(serve(single).url, "inspect", REPO, HF_TOKEN=EXPIRED)
    expected = "the hub answered 401: Invalid credentials in Authorization header; check HF_TOKEN or run"
    assert line == f"{REPO}: {expected} `hf auth login`"


# Endpoints


def test_an_endpoint_that_nobody_listens_on(sampan: Shell) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, never listening
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        start = time.monotonic()
        line = sampan.refusal(url)
    assert line.startswith(f"{REPO}: the connection to {url} failed: ")
    assert "refused" in line
    assert time.monotonic() - start < 20


def test_an_endpoint_that_never_answers(single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(single)
    hub.faults.silent = True
    start = time.monotonic()
    line = sampan.refused(hub.url, "inspect", REPO, HF_HUB_ETAG_TIMEOUT="1")
    assert line == f"{REPO}: the connection to {hub.url} failed: timed out; run again to continue"
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/elsewhere", "the hub answered 404: Not Found"),
        # what follows the question mark is taken for a query: any request gets this file
        (f"/{REPO}/resolve/main/README.md?", "expected a hub's JSON, found something else; is HF_ENDPOINT right?"),
        (f"/{REPO}/resolve/main/config.json?", "expected a hub's JSON, found something else; is HF_ENDPOINT right?"),
    ],
)
def test_an_endpoint_that_is_no_hub(
    path: str, expected: str, single: Path, serve: Callable[..., Hub], sampan: Shell
) -> None:
    url = serve(single).url + path
    line = sampan.refused(url, "inspect", REPO)
    assert line == (f"{REPO}: {expected}" if "JSON" not in expected else f"{REPO}: {url}: {expected}")


def test_offline_mode_and_an_unusable_home_are_told(
    single: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path
) -> None:
    hub = serve(single)
    line = sampan.refused(hub.url, "inspect", REPO, HF_HUB_OFFLINE="1")
    assert line == f"{REPO}: HF_HUB_OFFLINE is set: unset it, or give a folder as SOURCE"
    assert hub.requests == []
    (tmp_path / "file").write_text("")
    line = sampan.refused(hub.url, "inspect", REPO, HF_HOME=str(tmp_path / "file"))
    assert line.startswith(f"{REPO}: the download failed: ")
    assert str(tmp_path / "file") in line


# What is a hub id


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(
    single: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve(single)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(REPO)
    edited(single, tmp_path / REPO)
    assert not is_hub_id(REPO)
    sampan.convert(hub)
    assert hub.requests == []
    assert open_source(REPO) == open_folder(Path(REPO))
    line = sampan.refused(hub.url, "inspect", REPO, "--revision", "main")
    assert line == f"--revision: expected a hub id as SOURCE, found the folder {REPO}"


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "./Qwen", "../x", "https://huggingface.co/Qwen/Qwen3-0.6B"])
def test_a_source_that_is_neither(source: str) -> None:
    with pytest.raises(InputError) as e:
        open_source(source)
    assert str(e.value) == f"{source}: expected a checkpoint folder or a hub id such as Qwen/Qwen3-0.6B, found neither"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("tiny--org/x", "Cannot have -- or .. in repo_id"),
        ("tiny/x..y", "Cannot have -- or .. in repo_id"),
        ("tiny/x.git", "Repo_id cannot end by '.git'"),
        (f"tiny/{'x' * 97}", "Repo id must use alphanumeric chars"),
    ],
)
def test_a_hub_id_that_no_hub_would_take(source: str, reason: str) -> None:
    """Refused by huggingface_hub before it asks anyone, so it can run in this process."""
    with pytest.raises(InputError) as e:
        open_source(source)
    assert str(e.value).startswith(f"{source}: not a hub id: {reason}")
