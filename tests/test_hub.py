"""Checkpoints from a hub: what is asked for, what is kept, and one clear line for everything that goes wrong.

Every command is a process of its own, against a hub on the loopback: huggingface_hub reads HF_* at import.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from conftest import to_gguf
from hub_server import Hub, Repository
from safetensors.numpy import load_file, save_file

from sampan.checkpoint import open_folder
from sampan.cli import cli
from sampan.errors import InputError
from sampan.gguf import Header, read_header
from sampan.hub import is_hub_id, open_source

REPO = "tiny-org/Tiny-Qwen3"
MAIN, OLD = "a" * 40, "b" * 40
SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
UNWANTED = {"pytorch_model.bin", "onnx/model.onnx", "adapter.safetensors", "training.json"}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MEMBER, STRANGER, EXPIRED = "hf_member", "hf_stranger", "hf_expired"
COMMAND = [sys.executable, "-c", "from sampan.cli import main; main()"]
MIB = 1 << 20
STEP = 10 * MIB  # huggingface_hub writes a download in pieces of this size


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained fixture in one file, among files that a conversion has no use for."""
    folder = tmp_path_factory.mktemp("single")
    shutil.copytree(tiny.FIXTURE, folder, dirs_exist_ok=True)
    (folder / "onnx").mkdir()
    for name in UNWANTED - {"training.json"}:
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture(scope="module")
def wide(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float32: large enough for a download to be cut after its first 10 MiB."""
    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(single, folder, dirs_exist_ok=True)
    data = np.memmap(single / SINGLE, np.uint8, "r")
    tensors = {}
    for name, (_, t) in open_folder(single).tensors().items():
        bits = data[t.offset : t.offset + t.nbytes].view(np.uint16)
        tensors[name] = (bits.astype(np.uint32) << 16).view(np.float32).reshape(t.shape)
    save_file(tensors, folder / SINGLE)
    return folder


@pytest.fixture(scope="module")
def sharded(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That in two shards with an index."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(wide, folder, dirs_exist_ok=True)
    tensors = load_file(folder / SINGLE)
    weight_map = {name: SHARDS[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in SHARDS:
        save_file({name: tensors[name] for name, s in weight_map.items() if s == shard}, folder / shard)
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def serve() -> Iterator[Callable[..., Hub]]:
    """`serve(folder, …)` → a running hub with that folder as the repository `REPO`."""
    hubs: list[Hub] = []

    def start(folder: Path, tokens: tuple[str, ...] = (), old: Path | None = None, **access: object) -> Hub:
        commits, refs = {MAIN: folder}, {"main": MAIN}
        if old is not None:
            commits[OLD] = old
            refs["release/v1"] = OLD
        hub = Hub({REPO: Repository(commits, refs, **access)}, frozenset(tokens))  # type: ignore[arg-type]
        hubs.append(hub.__enter__())
        return hub

    yield start
    for hub in hubs:
        hub.__exit__()


class Shell:
    """`sampan …` with a hub home and an output of its own."""

    def __init__(self, folder: Path) -> None:
        self.home, self.out = folder / "home", folder / "out" / "model.gguf"

    def environment(self, endpoint: str, **more: str) -> dict[str, str]:
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        ours = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and not k.lower().endswith("_proxy")}
        return ours | {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",  # one more request, to learn what started the program
            **more,
        }

    def __call__(self, endpoint: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *args], capture_output=True, text=True, timeout=120, env=self.environment(endpoint, **more)
        )

    def arguments(self, *more: str) -> list[str]:
        return ["convert", REPO, "--quant", "q8_0", "-o", str(self.out), *more]

    def convert(self, hub: Hub, *args: str, **more: str) -> None:
        result = self(hub.url, *self.arguments(*args), **more)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"{self.out}: q8_0, ")
        assert result.stderr == ""
        assert {p.name for p in self.out.parent.iterdir()} == {"model.gguf", "model.gguf.manifest.json"}

    def refusal(self, endpoint: str, *args: str, **more: str) -> str:
        """The one line of a conversion that must fail, without its `error: `; nothing else may be left."""
        line = self.refused(endpoint, *self.arguments(*args), **more)
        assert not self.out.parent.exists() or not list(self.out.parent.iterdir())
        return line

    def refused(self, endpoint: str, *args: str, **more: str) -> str:
        """The one line of any command that must fail."""
        result = self(endpoint, *args, **more)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        assert result.stderr.startswith("error: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.endswith("\n"), result.stderr
        return result.stderr.removeprefix("error: ").removesuffix("\n")

    def files(self) -> set[str]:
        """The files of the repository that the hub home holds, whatever the commit."""
        snapshots = self.home / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots"
        return {p.relative_to(snapshots).as_posix().split("/", 1)[1] for p in snapshots.rglob("*") if not p.is_dir()}

    def weights(self) -> list[Path]:
        """Whatever in the hub home is as large as a shard, or is named as one."""
        found = [p for p in self.home.rglob("*") if p.is_file()]
        return [p for p in found if p.suffix == ".safetensors" or p.stat().st_size > MIB]


@pytest.fixture
def sampan(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def tensor_data(path: Path) -> dict[str, tuple[object, ...]]:
    """Name → shape, type and the digest of the bytes, which end where the next tensor begins."""
    header, data = read_header(path), path.read_bytes()
    ends = [*sorted(t.offset for t in header.tensors)[1:], len(data) - header.data_start]
    found: dict[str, tuple[object, ...]] = {}
    for t, end in zip(sorted(header.tensors, key=lambda t: t.offset), ends, strict=True):
        part = data[header.data_start + t.offset : header.data_start + end]
        found[t.name] = (t.shape, t.type_id, hashlib.sha256(part).hexdigest())
    return found


def settings(header: Header) -> dict[str, object]:
    """The metadata apart from what names the model."""
    return {k: v for k, v in header.metadata.items() if not k.startswith("general.")}


def edited(folder: Path, copy: Path) -> Path:
    """A copy to be changed; links, because only small files change."""
    shutil.copytree(folder, copy, copy_function=os.link)
    return copy


def write_anew(path: Path, text: str) -> None:
    path.unlink()  # it is a link to the original
    path.write_text(text)


# What is fetched, and what comes of it


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_a_hub_id_gives_what_its_folder_gives_and_asks_for_nothing_else(
    layout: str, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(layout)
    weights = {SINGLE} if layout == "single" else set(SHARDS)
    small = SMALL | ({INDEX} if layout == "sharded" else set())
    hub = serve(folder)
    sampan.convert(hub)

    assert {r.file for r in hub.requests} == weights | small | {""}
    assert not any(hub.of(name) for name in UNWANTED)
    assert [r.path for r in hub.requests if not r.file] == [f"/api/models/{REPO}?blobs=true"]
    for name in weights:
        assert sum(r.sent for r in hub.of(name) if r.storage) == (folder / name).stat().st_size
    assert sampan.files() == weights | small

    to_gguf(folder, tmp_path / "local.gguf", "q8_0")
    ours, local = read_header(sampan.out), read_header(tmp_path / "local.gguf")
    assert tensor_data(sampan.out) == tensor_data(tmp_path / "local.gguf")
    assert settings(ours) == settings(local)
    manifest = json.loads(sampan.out.with_name("model.gguf.manifest.json").read_text())
    assert (manifest["source"]["id"], manifest["source"]["revision"]) == (REPO, MAIN)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in weights}
    assert manifest["source"]["sha256"] == digests

    if layout == "sharded":
        hub.requests.clear()
        sampan.convert(hub, "--overwrite")
        assert [r.path for r in hub.requests] == [f"/api/models/{REPO}?blobs=true"], "the rest is in the cache"


def test_the_revision_is_a_branch_a_tag_or_a_commit(
    single: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path
) -> None:
    old = edited(single, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5000.0
    write_anew(old / "config.json", json.dumps(config))
    hub = serve(single, old=old)
    for revision, commit, theta in [("main", MAIN, 10000.0), ("release/v1", OLD, 5000.0), (OLD, OLD, 5000.0)]:
        hub.requests.clear()
        sampan.convert(hub, "--overwrite", "--revision", revision)
        assert read_header(sampan.out).metadata["qwen3.rope.freq_base"].value == theta, revision
        assert all(commit in r.path for r in hub.requests if r.file)
        manifest = json.loads(sampan.out.with_name("model.gguf.manifest.json").read_text())
        assert manifest["source"]["revision"] == commit
    assert sum(r.sent for r in hub.of(SINGLE)) == 0, "both commits have the same weights: fetched once"


@pytest.mark.parametrize("revision", ["nope", "c" * 40])
def test_a_wrong_revision_is_named(revision: str, single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    line = sampan.refusal(serve(single).url, "--revision", revision)
    assert line == f"{REPO}@{revision}: expected an existing branch, tag or commit, found none of that name"


@pytest.mark.parametrize(
    ("layout", "command"), [("single", "inspect"), ("sharded", "inspect"), ("sharded", "convert --plan")]
)
def test_plan_and_inspect_read_headers_only(
    layout: str, command: str, serve: Callable[..., Hub], sampan: Shell, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(layout)
    hub = serve(folder)
    name, *option = command.split()
    result = sampan(hub.url, name, REPO, *option, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    weights = [r for r in hub.requests if r.file.endswith(".safetensors")]
    assert {r.file for r in weights} == ({SINGLE} if layout == "single" else set(SHARDS))
    assert {r.headers["range"] for r in weights} == {"bytes=0-262143"}
    assert {r.status for r in weights if r.storage} == {206}
    assert sum(r.sent for r in weights) < 600_000 < (7 * MIB)
    assert sampan.files() == SMALL | ({INDEX} if layout == "sharded" else set())
    assert sampan.weights() == []

    ours, local = (
        json.loads(result.stdout),
        json.loads(CliRunner().invoke(cli, [name, str(folder), *option, "--json"]).stdout),
    )
    source = "source" if name == "convert" else "checkpoint"
    assert (ours.pop(source), ours.pop("revision")) == (REPO, MAIN)
    assert (local.pop(source), local.pop("revision")) == (str(folder), None)
    if name == "convert":
        assert ours.pop("files")[0]["path"] == f"{REPO.split('/')[1]}.gguf"
        local.pop("files")
        headers = {"bytes", "disk", "peak_memory", "bits_per_weight"}
        assert {k for k in ours if ours[k] != local[k]} <= headers, "the name is part of the header"
        assert ours["bytes"] - local["bytes"] in range(-100, 100)
        ours, local = ({k: v for k, v in d.items() if k not in headers} for d in (ours, local))
        assert len(ours["tensors"]) == 46
    assert ours == local


def test_a_server_that_ignores_ranges_is_refused_before_it_sends_a_checkpoint(
    wide: Path, serve: Callable[..., Hub], sampan: Shell
) -> None:
    hub = serve(wide)
    hub.faults.whole = True
    line = sampan.refused(hub.url, "inspect", REPO)
    assert line == f"{REPO}: {SINGLE}: expected an answer to a range request (206), found 200"
    assert sum(r.sent for r in hub.of(SINGLE)) < (wide / SINGLE).stat().st_size


def test_the_library_speaks_when_it_is_told_to(single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    """The other tests assert that it is silent, though the hub asks everyone without a token to set one."""
    hub = serve(single)
    hub.faults.missing.add("config.json")
    result = sampan(hub.url, "inspect", REPO, HF_HUB_VERBOSITY="warning")
    assert result.stderr.startswith(f"Please set a HF_TOKEN.\nerror: {REPO}: config.json: ")


def test_without_links_the_weights_lie_there_once(single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    sampan.convert(serve(single), HF_HUB_DISABLE_SYMLINKS="1")
    (path,) = sampan.weights()
    assert path.name == SINGLE
    assert not path.is_symlink()


# Downloads that are cut off


def test_a_closed_connection_is_continued_at_once(wide: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(wide)
    hub.faults.cut[SINGLE] = (12 * MIB, "closed")
    data = (wide / SINGLE).read_bytes()
    blobs = sampan.home / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    leftover = blobs / f"{hashlib.sha256(data).hexdigest()}.incomplete"
    leftover.write_bytes(data + b"two runs wrote this")  # no start to go on from: thrown away
    sampan.convert(hub)
    assert continued(hub, wide) == [12 * MIB, (wide / SINGLE).stat().st_size - STEP]


def test_after_a_reset_connection_the_second_run_fetches_only_the_rest(
    wide: Path, serve: Callable[..., Hub], sampan: Shell
) -> None:
    hub = serve(wide)
    hub.faults.cut[SINGLE] = (12 * MIB, "reset")
    line = sampan.refusal(hub.url)
    assert line.startswith(f"{REPO}: {SINGLE}: the connection to {hub.url} failed: ")
    assert line.endswith("; run again to continue")
    sampan.convert(hub)
    assert continued(hub, wide) == [12 * MIB, (wide / SINGLE).stat().st_size - STEP]


def test_after_a_kill_the_second_run_fetches_only_the_rest(
    wide: Path, serve: Callable[..., Hub], sampan: Shell
) -> None:
    hub = serve(wide)
    hub.faults.cut[SINGLE] = (12 * MIB, "silent")
    with subprocess.Popen([*COMMAND, *sampan.arguments()], env=sampan.environment(hub.url)) as process:
        try:
            assert hub.stalled.wait(60)
            (unfinished,) = sampan.home.glob("hub/*/blobs/*.incomplete")
            limit = time.monotonic() + 60
            while time.monotonic() < limit and unfinished.stat().st_size < STEP:
                time.sleep(0.02)
        finally:
            process.kill()
    assert not sampan.out.exists()
    sampan.convert(hub)
    assert continued(hub, wide) == [12 * MIB, (wide / SINGLE).stat().st_size - STEP]


def continued(hub: Hub, folder: Path) -> list[int]:
    """Bytes sent by the storage in each GET of the weights; the second starts where whole pieces end."""
    gets = [r for r in hub.of(SINGLE) if r.storage and r.method == "GET"]
    assert [r.headers.get("range") for r in gets] == [None, f"bytes={STEP}-"]
    assert [r.status for r in gets] == [200, 206]
    return [r.sent for r in gets]


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
