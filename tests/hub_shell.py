"""The command line against a hub on the loopback: repositories made of the trained fixture, and a shell.

Every command is a process of its own, against a hub on the loopback: huggingface_hub reads HF_* at import.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from hub_server import Hub, Repository
from safetensors.numpy import load_file, save_file

from sampan.checkpoint import open_folder

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
        self.command = COMMAND
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
            [*self.command, *args], capture_output=True, text=True, timeout=120, env=self.environment(endpoint, **more)
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

    def refused_after(self, start: str, endpoint: str, *args: str) -> str:
        """The same for one that tells first what it begins."""
        result = self(endpoint, *args)
        first, line = result.stderr.splitlines()
        assert (result.returncode, result.stdout) == (2, "") and first.startswith(start), result.stderr
        return line.removeprefix("error: ")

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


def edited(folder: Path, copy: Path) -> Path:
    """A copy to be changed; links, because only small files change."""
    shutil.copytree(folder, copy, copy_function=os.link)
    return copy


def write_anew(path: Path, text: str) -> None:
    path.unlink()  # it is a link to the original
    path.write_text(text)
