"""Checkpoints from a hub: what is asked for, what is kept, and downloads that are cut off."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import to_gguf
from hub_server import Hub
from hub_shell import (
    COMMAND,
    INDEX,
    MAIN,
    MIB,
    OLD,
    REPO,
    SHARDS,
    SINGLE,
    SMALL,
    STEP,
    UNWANTED,
    Shell,
    edited,
    write_anew,
)

from sampan.cli import cli
from sampan.gguf import Header, read_header


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


# What is fetched, and what comes of it


@pytest.mark.everyday("sharded")
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


def test_templates_in_a_folder_of_their_own_are_fetched(
    single: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(single, tmp_path / "m"))
    more = folder / "additional_chat_templates"
    (more / "deeper").mkdir(parents=True)
    for name in ("tool_use.jinja", "notes.txt", "deeper/x.jinja"):
        (more / name).write_text("T")
    sampan.convert(hub := serve(folder))
    asked = {r.file for r in hub.requests if r.file.startswith("additional")}
    assert asked == {"additional_chat_templates/tool_use.jinja"}
    assert read_header(sampan.out).metadata["tokenizer.chat_template.tool_use"].value == "T"


@pytest.mark.slow
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
        for tensor in ours["tensors"] + local["tensors"]:
            assert tensor.pop("offsets")
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


def test_two_sets_of_weights_and_a_card_of_megabytes_are_named(
    single: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path
) -> None:
    """The index is not fetched, and the card neither, of which a cache may not hold another copy."""
    folder = Path(shutil.copytree(single, tmp_path / "both"))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(["a"], SHARDS[0])}))
    os.truncate(folder / "README.md", 11_000_000)
    hub = serve(folder)
    result = sampan(hub.url, *sampan.arguments("--plan"))
    assert result.returncode == 0, result.stderr
    assert f"{SINGLE} is taken, as transformers does, not the shards that {INDEX} beside it names" in result.stdout
    assert "the model card is left out: README.md has 11 MB" in result.stdout
    assert not {r.file for r in hub.requests} & {"README.md", INDEX}


def test_without_links_the_weights_lie_there_once(single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    sampan.convert(serve(single), HF_HUB_DISABLE_SYMLINKS="1")
    (path,) = sampan.weights()
    assert path.name == SINGLE
    assert not path.is_symlink()


# Downloads that are cut off


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
