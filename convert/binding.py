"""Bind every canonical tensor to the checkpoint tensors it is made of, before any weight is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sampan.checkpoint import Checkpoint
from sampan.errors import brief, wrong
from sampan.safetensors import TensorInfo

from .architecture import MLA, Architecture, TensorSpec, tensor_specs
from .encoding import Encoding, find_encoding
from .family import Family, Source

HEAD, EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Piece:
    """`rows` rows of one stored tensor, seen as a matrix, from `start`; output rows `at`, `at + step`, …

    `transposed`: they become all columns of output rows from `at` instead, and are converted in one piece.
    """

    shard: int
    info: TensorInfo
    encoding: Encoding
    start: int
    rows: int
    at: int
    step: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Bound:
    """A canonical tensor and its pieces, which cover its rows once."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return math.prod(self.spec.shape[:-1])

    @property
    def columns(self) -> int:
        return self.spec.shape[-1]

    def stored_columns(self, piece: Piece) -> int:
        return self.spec.shape[-2] if piece.transposed else self.columns


@dataclass(frozen=True, slots=True)
class Binding:
    """`redundant_head` is a tied checkpoint's own copy of the embedding: compared, not written.

    `left_out`: tensors of parts that are not converted, by what they are.
    """

    tensors: tuple[Bound, ...]
    redundant_head: TensorInfo | None
    left_out: Mapping[str, tuple[TensorInfo, ...]]


def bind(checkpoint: Checkpoint, family: Family, arch: Architecture) -> Binding:
    """Claim every tensor of the checkpoint; missing, misshapen and unclaimed ones are refused."""
    stored = checkpoint.tensors()
    claimed: set[str] = set()
    tensors = []
    for spec in tensor_specs(arch):
        sources = _choose(family, spec, stored, checkpoint)
        pieces = _pieces(spec, sources, stored, checkpoint, arch)
        claimed.update(p.info.name for p in pieces)
        tensors.append(Bound(spec, tuple(pieces)))
    head = family.sources[HEAD][0].name
    redundant = stored[head][1] if arch.tied and head in stored else None
    if redundant is not None:
        claimed.add(head)
    left_out: dict[str, list[TensorInfo]] = {}
    for name, (shard, info) in stored.items():
        if name in claimed or any(re.fullmatch(p, name) for p in family.leftovers):
            continue
        part = next((what for p, what in family.left_out.items() if re.fullmatch(p, name)), None)
        if part is not None:
            left_out.setdefault(part, []).append(info)
        else:
            where = f"{checkpoint.shards[shard].name}: {brief(name)}"
            raise wrong(where, f"only tensors that {arch.family} knows", "one that no rule claims")
    return Binding(tuple(tensors), redundant, {part: tuple(infos) for part, infos in left_out.items()})


def _choose(
    family: Family, spec: TensorSpec, stored: Mapping[str, object], checkpoint: Checkpoint
) -> tuple[Source, list[str]]:
    """The first layout whose tensors exist, and their names."""
    layouts = family.sources[spec.name.replace(f"blk.{spec.layer}.", "blk.{i}.", 1)]
    for source in layouts:
        names = _names(source, spec)
        if names[0] in stored:
            missing = next((n for n in names if n not in stored), None)
            if missing is None:
                return source, names
            raise wrong(checkpoint.folder, f"the tensor {missing}", "none of that name in any shard")
    first = _names(layouts[0], spec)[0]
    hint = "tie_word_embeddings is false in config.json" if spec.name == HEAD else ""
    raise wrong(checkpoint.folder, f"the tensor {first}", "none of that name in any shard", hint)


def _names(source: Source, spec: TensorSpec) -> list[str]:
    name = source.name.replace("{i}", str(spec.layer))
    return [name.replace("{e}", str(e)) for e in range(spec.shape[0])] if "{e}" in name else [name]


def _pieces(
    spec: TensorSpec,
    chosen: tuple[Source, list[str]],
    stored: Mapping[str, tuple[int, TensorInfo]],
    checkpoint: Checkpoint,
    arch: Architecture,
) -> list[Piece]:
    source, names = chosen
    if source.of_heads is not None:
        return _head_pieces(arch, spec, source.of_heads, *stored[names[0]], checkpoint)
    part, parts = source.part
    experts = spec.shape[0] if len(spec.shape) == 3 else 1
    rows = math.prod(spec.shape[:-1]) // experts
    pieces = []
    for e, name in enumerate(names):
        shard, info = stored[name]
        where = f"{checkpoint.shards[shard].name}"
        if len(names) > 1 or "{e}" in source.name:
            expected = spec.shape[1:]
        elif parts > 1:
            expected = (experts, rows * parts, spec.shape[-1])
        else:
            expected = spec.shape
        if info.shape != expected:
            raise wrong(f"{where}: {name}", f"shape {list(expected)}", list(info.shape))
        encoding = find_encoding(info, where)
        if expected == spec.shape[1:] and len(spec.shape) == 3:
            pieces.append(Piece(shard, info, encoding, 0, rows, e * rows))
        else:  # each expert of a fused tensor is a piece of its own, so that a dead one is noticed
            for x in range(experts):
                start = (x * parts + part) * rows
                pieces.append(Piece(shard, info, encoding, start, rows, x * rows))
    return pieces


def _head_pieces(
    arch: Architecture, spec: TensorSpec, part: str, shard: int, info: TensorInfo, checkpoint: Checkpoint
) -> list[Piece]:
    """k's or v's rows of every head of kv_b [heads · (nope + v), kv_lora]."""
    a = arch.blocks[spec.layer].attention
    assert isinstance(a, MLA)  # noqa: S101 - no other attention has such tensors
    where = checkpoint.shards[shard].name
    expected = (a.heads * (a.nope + a.v), a.kv_lora)
    if info.shape != expected:
        raise wrong(f"{where}: {info.name}", f"shape {list(expected)}", list(info.shape))
    encoding = find_encoding(info, where)
    skip, rows = (0, a.nope) if part == "k" else (a.nope, a.v)
    starts = [h * (a.nope + a.v) + skip for h in range(a.heads)]
    return [Piece(shard, info, encoding, s, rows, h * spec.shape[1], part == "k") for h, s in enumerate(starts)]


def check_redundant_head(checkpoint: Checkpoint, binding: Binding, block: int = 1 << 23) -> None:
    """A tied checkpoint's head must be the embedding, byte for byte; reads both in blocks."""
    head = binding.redundant_head
    if head is None:
        return
    stored = checkpoint.tensors()
    embedding = next(b for b in binding.tensors if b.spec.name == EMBEDDING).pieces[0]
    shard = checkpoint.shards[stored[head.name][0]]
    same = head.dtype == embedding.info.dtype and head.shape == embedding.info.shape
    other = checkpoint.shards[embedding.shard]
    if same and shard.path and other.path:
        with shard.path.open("rb") as a, other.path.open("rb") as b:
            for offset in range(0, head.nbytes, block):
                n = min(block, head.nbytes - offset)
                if os.pread(a.fileno(), n, head.offset + offset) != os.pread(
                    b.fileno(), n, embedding.info.offset + offset
                ):
                    same = False
                    break
    if not same:
        raise wrong(
            f"{shard.name}: {head.name}", f"a copy of {embedding.info.name}, since tie_word_embeddings is true",
            "other values", "set tie_word_embeddings to false in config.json if the head is its own",
        )  # fmt: skip
