"""A Hugging Face checkpoint, opened lazily: config, small files and tensor locations, no weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, brief, wrong
from .files import read_json, size_of, there
from .printable import printable
from .safetensors import ReadAt, TensorInfo, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"  # of the peft package
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


Body = Callable[[int, int], Iterator[bytes]]
"""(start, stop) → those bytes of a remote file in pieces of any size, all of them or an UnfinishedError."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file. `path` is None when only its header was fetched (`--plan` or `--stream` of a hub id).

    `header_sha256` identifies the layout; `sha256` of the whole file is known beforehand only from a hub.
    `body` reads it from there.
    """

    name: str
    path: Path | None
    size: int
    header_sha256: str
    sha256: str | None
    tensors: Mapping[str, TensorInfo]
    body: Body | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`folder` holds the small files (config, tokenizer, template); `shards` where every tensor lies."""

    source: str
    revision: str | None
    folder: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()  # what was taken where the folder says two things

    def tensors(self) -> dict[str, tuple[int, TensorInfo]]:
        """Every tensor by name, with the number of its shard."""
        return {name: (i, info) for i, shard in enumerate(self.shards) for name, info in shard.tensors.items()}


@dataclass(frozen=True, slots=True)
class ShardFile:
    """How to reach one shard before it is opened."""

    path: Path | None
    size: int
    read: ReadAt
    sha256: str | None = None
    body: Body | None = None


def open_folder(folder: Path, source: str = "", revision: str | None = None) -> Checkpoint:
    """Open a checkpoint folder; reads config, index and headers only."""
    folder = folder.resolve()

    def locate(name: str) -> ShardFile:
        path = folder / name
        if not there(path):
            raise wrong(folder / INDEX, f"the shard {name} beside it", "no such file")
        return ShardFile(path, size_of(path), file_reader(path))

    if not there(folder / INDEX) and not there(folder / SINGLE):
        if there(folder / ADAPTER):
            raise InputError(
                f"{folder}: this is an adapter ({ADAPTER}) without its model: merge it into the model first, with "
                "merge_and_unload() of the peft package, and save that"
            )
        pickle = next((p for p in PICKLES if (folder / p).exists()), None)
        if pickle:
            raise wrong(
                folder / pickle, f"{SINGLE} or {INDEX}", "a pickle, which can run code and is never opened",
                "convert it to safetensors where you trust it",
            )  # fmt: skip
        raise wrong(folder, f"{SINGLE} or {INDEX}", "neither", "is this a Hugging Face checkpoint?")
    return assemble(folder, source or printable(folder), revision, locate)


def assemble(
    folder: Path,
    source: str,
    revision: str | None,
    locate: Callable[[str], ShardFile],
    listed: Collection[str] | None = None,
) -> Checkpoint:
    """Read config, index and shard headers; `locate` finds a shard by its name in the index. `listed`: the files of a
    repository, of which only some are here.

    Beside an index a model.safetensors is what transformers loads, so it is taken here.
    """
    config = read_json(folder / "config.json")
    single, index = (there(folder / n) if listed is None else n in listed for n in (SINGLE, INDEX))
    weight_map = read_weight_map(folder / INDEX) if not single else None
    names = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]
    shards = tuple(_open_shard(name, locate(name), folder) for name in names)
    found: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor in found:
                raise wrong(f"{shard.name}: {brief(tensor)}", "each tensor in one shard", f"it in {found[tensor]} too")
            found[tensor] = shard.name
    notes = []
    if weight_map is not None:
        notes += _compare_index(weight_map, found, folder / INDEX)
    elif index:
        notes.append(f"{SINGLE} is taken, as transformers does, not the shards that {INDEX} beside it names")
    return Checkpoint(source, revision, folder, config, shards, tuple(notes))


def _open_shard(name: str, file: ShardFile, folder: Path) -> Shard:
    where = str(file.path or name)
    tensors = read_header(file.read, file.size, where)
    length = int.from_bytes(file.read(0, 8), "little")
    digest = hashlib.sha256(file.read(0, 8 + length)).hexdigest()
    return Shard(name, file.path, file.size, digest, file.sha256, tensors, file.body)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name → shard name; a shard name that is not a plain file name is refused."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise wrong(f"{index}: weight_map", "tensor names and their shards", brief(weight_map))
    for tensor, shard in weight_map.items():
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and shard == Path(shard).name
        if not plain or "\\" in shard or shard.startswith("."):
            raise wrong(f"{index}: {brief(tensor)}", "the plain name of a .safetensors file", brief(shard))
    return weight_map


def _compare_index(expected: dict[str, str], found: dict[str, str], index: Path) -> list[str]:
    """Refuse tensors that are not where the index says; name those that it does not know, which count all the same."""
    for tensor, shard in expected.items():
        if found.get(tensor) != shard:
            raise wrong(f"{index}: {brief(tensor)}", f"it in {shard}", found.get(tensor, "it in no shard"))
    extra = [t for t in found if t not in expected]
    more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    return [f"{index.name} does not list {brief(extra[0])}{more}, which its shards hold"] if extra else []


def file_reader(path: Path) -> ReadAt:
    """Positional reads of a file that is opened for each read: for headers, not for weights."""

    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as f:
            return os.pread(f.fileno(), length, offset)

    return read
