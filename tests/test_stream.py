"""Checkpoints that are converted while they come from a hub, with one shard at a time on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import encoders
import numpy as np
import pytest
import tiny
from conftest import Pair, run_cli, to_gguf
from hub_server import Hub
from hub_shell import MEMBER, REPO, SHARDS, SINGLE, STRANGER, Shell
from safetensors.numpy import load_file, save_file
from test_hub import tensor_data

from sampan.checkpoint import Checkpoint, Shard, open_folder
from sampan.convert import shards
from sampan.convert.conversion import convert, prepare
from sampan.errors import InputError, UnfinishedError
from sampan.gguf import read_header
from sampan.job import work_folder

# A command whose pauses between attempts are short; the second is killed on the way, so it must record often.
QUICK = "from sampan import hub; hub.PAUSE = 0.01; from sampan.cli import main; main()"
RECORDING = f"from sampan.convert import fill; fill.RECORD_SECONDS = 0.05; {QUICK}"


@pytest.fixture
def quick(sampan: Shell) -> Shell:
    sampan.command = [sys.executable, "-c", QUICK]
    return sampan


def gets(hub: Hub, name: str) -> list[tuple[str, int]]:
    """Range and bytes sent of each answer with weights, the headers' ones left out."""
    found = [(r.headers["range"].removeprefix("bytes="), r.sent) for r in hub.of(name) if r.storage]
    return found[1:]


def same_artifact(a: Path, b: Path) -> None:
    """Two conversions of one checkpoint under two names."""
    if a.is_dir():
        names = {p.name for p in a.iterdir()}
        assert names == {p.name for p in b.iterdir()}
        for name in names - {"manifest.json"}:
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
    else:
        assert tensor_data(a) == tensor_data(b)


# What comes of it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "layout", "to", "quant"),
    [
        ("plain", 2, "gguf", "q4_k_m"),
        ("plain", 2, "onnx", "int4"),
        ("fp8-block", 2, "gguf", "q8_0"),
        ("fp8-block", 1, "gguf", "q8_0"),
        ("int4", 1, "gguf", "native"),
        ("int4-zeros", 2, "onnx", "native"),
        ("mxfp4", 1, "gguf", "native"),
        ("gptq", 2, "gguf", "q8_0"),
        ("gptq", 1, "onnx", "native"),
        ("awq", 1, "gguf", "q4_0"),
    ],
)
def test_a_streamed_checkpoint_gives_what_its_folder_gives(
    encoding: str, layout: int, to: str, quant: str, model: Callable[[str], Path], pair: Pair, sharded: Path,
    serve: Callable[..., Hub], sampan: Shell, tmp_path: Path,
) -> None:  # fmt: skip
    """In two shards the scales lie in another than their codes, in one before or behind them."""
    if encoding == "plain":
        folder = sharded
    elif (layout, to) == (2, "gguf"):
        folder = pair(encoding)[0]
    else:
        source = model(encoders.TINY if to == "gguf" else "qwen3")
        folder = encoders.encode(source, tmp_path / "model", encoding, shards=layout)[0]
    out = tmp_path / "out" / "model"
    hub = serve(folder)
    result = sampan(hub.url, "convert", REPO, "--stream", "--to", to, "--quant", quant, "-o", str(out))
    assert (result.returncode, result.stderr.count("error")) == (0, 0), result.stderr
    assert sampan.weights() == []
    files = {"model"} if to == "onnx" else {"model", "model.manifest.json"}
    assert {p.name for p in out.parent.iterdir()} == files
    convert(prepare(open_folder(folder), tmp_path / "local", to, quant, jobs=2))
    same_artifact(out, tmp_path / "local")
    manifest = json.loads((out / "manifest.json" if to == "onnx" else out.with_name("model.manifest.json")).read_text())
    shards_ = sorted(folder.glob("model*.safetensors"))
    assert manifest["source"]["sha256"] == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards_}
    for path in shards_:
        assert len(gets(hub, path.name)) >= 1
        assert max(sent for _, sent in gets(hub, path.name)) == path.stat().st_size, "each shard in one request"


# Connections and kills


@pytest.mark.slow
def test_dropped_connections_are_continued(sharded: Path, serve: Callable[..., Hub], quick: Shell) -> None:
    hub = serve(sharded)
    size = (sharded / SHARDS[0]).stat().st_size
    drops = [(100, "closed"), (300_000, "closed"), (300_001, "reset"), (2_000_000, "reset"), (size - 1, "closed")]
    hub.faults.drops[SHARDS[0]] = list(drops)
    quick.convert(hub, "--stream")
    assert hub.faults.drops == {SHARDS[0]: []}
    fetched = gets(hub, SHARDS[0])
    assert fetched[0] == ("100-262143", 262044), "the header too"
    assert [r for r, _ in fetched[1:]] == [
        f"{start}-{size - 1}" for start in (0, 300_000, 300_001, 2_000_000, size - 1)
    ]
    assert sum(sent for _, sent in fetched[1:]) == size
    to_gguf(sharded, quick.out.with_name("local"), "q8_0")
    same_artifact(quick.out, quick.out.with_name("local"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (503, "the hub answered 503: not now; run again to continue"),
        (429, "the hub answered 429: not now; run again to continue"),
        (416, "the hub answered 416: not now"),
        (404, "the hub answered 404: not now"),
        (403, "the hub answered 403: not now"),
        (401, "the hub answered 401: not now; check HF_TOKEN or run `hf auth login`"),
    ],
)
def test_a_hub_that_stops_answering_keeps_the_work(
    status: int, said: str, sharded: Path, serve: Callable[..., Hub], quick: Shell
) -> None:
    hub = serve(sharded)
    hub.faults.refused[SHARDS[1]] = (1, status)
    line = quick.refused(hub.url, *quick.arguments("--stream"))
    assert line == f"{REPO}: {SHARDS[1]}: {said}"
    tries = 6 if status in (429, 503) else 1
    assert [r.status for r in hub.of(SHARDS[1]) if r.storage] == [206, *[status] * tries]
    left = {p.name for p in work_folder(quick.out).iterdir()}
    assert left - {"shard"} == {"data", "sampan.journal"}
    hub.faults.refused.clear()
    hub.requests.clear()
    result = quick(hub.url, *quick.arguments("--stream"))
    assert (result.returncode, result.stderr) == (0, "continued an unfinished output\n")
    assert gets(hub, SHARDS[0]) == [], "its header alone"
    to_gguf(sharded, quick.out.with_name("local"), "q8_0")
    same_artifact(quick.out, quick.out.with_name("local"))


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "at"), [(0, 300_000), (0, 3_000_000), (1, 300_000), (1, 3_000_001)])
def test_after_a_kill_only_the_rest_is_fetched(
    shard: int, at: int, sharded: Path, serve: Callable[..., Hub], sampan: Shell
) -> None:
    hub = serve(sharded)
    hub.faults.drops[SHARDS[shard]] = [(at, "silent")]
    sampan.command = [sys.executable, "-c", RECORDING]
    hand = shards.shard_in_hand(sampan.out)
    command = [*sampan.command, *sampan.arguments("--stream")]
    with subprocess.Popen(command, env=sampan.environment(hub.url), stderr=subprocess.DEVNULL) as process:
        try:
            assert hub.stalled.wait(60)
            limit = time.monotonic() + 60
            while time.monotonic() < limit and (not hand.exists() or hand.stat().st_size < at):
                time.sleep(0.01)
        finally:
            process.kill()
    names = {p.name for p in work_folder(sampan.out).iterdir()}
    assert names == {"data", "sampan.journal", "shard"}, "of the other shard nothing is left"
    assert hand.stat().st_size == at
    assert sampan.weights() == []
    hub.requests.clear()
    result = sampan(hub.url, *sampan.arguments("--stream"))
    assert result.returncode == 0, result.stderr
    size = (sharded / SHARDS[shard]).stat().st_size
    assert gets(hub, SHARDS[shard]) == [(f"{at}-{size - 1}", size - at)]
    assert len(gets(hub, SHARDS[1 - shard])) == 1 - shard, "a shard that is done is not fetched again"
    to_gguf(sharded, sampan.out.with_name("local"), "q8_0")
    same_artifact(sampan.out, sampan.out.with_name("local"))


@pytest.mark.slow
def test_a_shard_in_hand_of_something_else_is_not_used(sharded: Path, serve: Callable[..., Hub], quick: Shell) -> None:
    hand = shards.shard_in_hand(quick.out)
    for left in (b"", b"\xff" * 100, (sharded / SHARDS[1]).read_bytes()[:500_000]):
        hand.parent.mkdir(parents=True)
        (hand.parent / "sampan.journal").touch()
        hand.write_bytes(left)
        hub = serve(sharded)
        quick.convert(hub, "--stream", "--overwrite")
        assert gets(hub, SHARDS[0])[0][0].startswith("0-")


@pytest.mark.slow
def test_the_disk_holds_the_output_and_one_shard(sharded: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(sharded)
    hub.faults.drops = {s: [(3_000_000, "closed")] for s in SHARDS}  # a second for the watcher in each
    largest, stop, hand = [0], threading.Event(), shards.shard_in_hand(sampan.out)

    def watch() -> None:
        while not stop.wait(0.005):
            used = 0
            for path in (sampan.out, work_folder(sampan.out) / "data" / sampan.out.name, hand):
                with contextlib.suppress(FileNotFoundError):
                    used += path.stat().st_size
            largest[0] = max(largest[0], used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        sampan.convert(hub, "--stream")
    finally:
        stop.set()
        watcher.join()
    sizes = [(sharded / s).stat().st_size for s in SHARDS]
    bound = sampan.out.stat().st_size + max(sizes)
    assert sampan.out.stat().st_size + min(sizes) // 3 < largest[0] < bound + 100_000 < bound + min(sizes)


# Damage


def test_a_damaged_shard_gives_no_output(sharded: Path, serve: Callable[..., Hub], quick: Shell) -> None:
    hub = serve(sharded)
    hub.faults.damaged.add(SHARDS[1])
    line = quick.refusal(hub.url, "--stream")
    data = (sharded / SHARDS[1]).read_bytes()
    listed, found = (hashlib.sha256(d).hexdigest() for d in (data, data[:-1] + bytes([data[-1] ^ 1])))
    assert line == f"{SHARDS[1]}: expected SHA-256 {listed} as the hub lists, found {found}; run again"


Change = Callable[[Shard, int, bytes], bytes]


def streamed(folder: Path, change: Change = lambda shard, start, data: data) -> Checkpoint:
    """A folder as if it came from a hub; `change` alters what a read of a shard from `start` gives."""

    def remote(shard: Shard) -> Shard:
        assert shard.path
        data = shard.path.read_bytes()

        def body(start: int, stop: int) -> Iterator[bytes]:
            part = change(shard, start, data[start:stop])
            yield from (part[i : i + 10_007] for i in range(0, len(part), 10_007))

        return replace(shard, path=None, sha256=hashlib.sha256(data).hexdigest(), body=body)

    checkpoint = open_folder(folder)
    return replace(checkpoint, shards=tuple(map(remote, checkpoint.shards)))


def test_scales_that_are_not_those_of_their_shard(pair: Pair, tmp_path: Path) -> None:
    """They come before their own shard does, whose SHA-256 then says what they should have been."""
    folder = pair("fp8-block")[0]

    def change(shard: Shard, start: int, data: bytes) -> bytes:
        return data if start == 0 else bytes([data[0] ^ 1]) + data[1:]

    convert(prepare(streamed(folder), tmp_path / "good.gguf", "gguf", "q8_0", jobs=2))
    with pytest.raises(InputError, match="_scale_inv: expected the same bytes at every read, found others; the hub"):
        convert(prepare(streamed(folder, change), tmp_path / "m.gguf", "gguf", "q8_0", jobs=2))
    assert {p.name for p in tmp_path.iterdir()} == {"good.gguf", "good.gguf.manifest.json"}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("first", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_head_is_compared_across_shards(first: str, own: bool, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "model"))
    tensors = {k: v.copy() for k, v in load_file(folder / SINGLE).items()}
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"]
    head = tensors["model.embed_tokens.weight"].copy()
    if own:
        head[-1, -1] += np.ones((), head.dtype)
    names = {SHARDS[0]: [first], SHARDS[1]: [k for k in [*tensors, "lm_head.weight"] if k != first]}
    tensors["lm_head.weight"] = head
    for file, keys in names.items():
        save_file({k: tensors[k] for k in keys}, folder / file)
    (folder / SINGLE).unlink()
    weight_map = {k: file for file, keys in names.items() for k in keys}
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    out = tmp_path / "m.gguf"
    for checkpoint in (open_folder(folder), streamed(folder)):
        conversion = prepare(checkpoint, out, "gguf", "q8_0", jobs=2)
        if own and checkpoint.shards[0].path is None:  # known too late
            with pytest.raises(InputError, match=r"lm_head\.weight: expected a copy of model\.embed_tokens\.weight"):
                convert(conversion, overwrite=True)
        else:
            convert(conversion, overwrite=True)
            assert ("output.weight" in {t.name for t in read_header(out).tensors}) == own


def test_a_full_disk_keeps_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = prepare(streamed(tiny.FIXTURE), tmp_path / "m.gguf", "gguf", "q4_0", jobs=2)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: real._replace(free=conversion.plan.nbytes))
    with pytest.raises(
        UnfinishedError, match=r"m\.gguf\.unfinished/shard: expected .* of free disk, found .*; run again"
    ):
        convert(conversion)
    monkeypatch.undo()
    convert(conversion)
    to_gguf(tiny.FIXTURE, tmp_path / "local.gguf", "q4_0")
    same_artifact(tmp_path / "m.gguf", tmp_path / "local.gguf")


# Refusals


@pytest.mark.everyday("hf_stranger")
@pytest.mark.parametrize("token", ["", STRANGER])
def test_a_gated_repository(token: str, single: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(single, tokens=(MEMBER, STRANGER), gated=True, members=frozenset({MEMBER}))
    line = sampan.refusal(hub.url, "--stream", **({"HF_TOKEN": token} if token else {}))
    assert line.startswith(f"{REPO}: config.json: this repository is gated: ask for access on its page")
    sampan.convert(hub, "--stream", HF_TOKEN=MEMBER)
    assert not any("authorization" in r.headers for r in hub.requests if r.storage)


def test_a_folder_is_not_streamed(tmp_path: Path) -> None:
    result = run_cli("convert", str(tiny.FIXTURE), "--stream", "-o", str(tmp_path / "m.gguf"))
    expected = f"error: --stream: expected a hub id as SOURCE, found the folder {tiny.FIXTURE}\n"
    assert (result.returncode, result.stderr) == (2, expected)
    result = run_cli("convert", "a/b", "--stream", "--validate", "-o", str(tmp_path / "m.gguf"))
    assert result.stderr.startswith("error: --validate: expected a checkpoint that stays on the disk, found --stream")
