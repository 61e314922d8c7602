"""Bind every canonical tensor to the checkpoint tensors it is made of, before any weight is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, brief, wrong
from sampan.safetensors import TensorInfo

from .architecture import MLA, Architecture, TensorSpec, tensor_specs
from .encoding import Part, StoredTensor
from .family import Family, Source
from .quantization import KEY, read_storage

HEAD, EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Piece:
    """`rows` rows of one stored tensor, seen as a matrix, from `start`; output rows `at`, `at + step`, …

    `transposed`: they become all columns of output rows from `at` instead, and are converted in one piece.
    """

    stored: StoredTensor
    start: int
    rows: int
    at: int
    step: int = 1
    transposed: bool = False

    @property
    def shard(self) -> int:
        return self.stored.main.shard

    @property
    def info(self) -> TensorInfo:
        """The tensor that holds the values or codes."""
        return self.stored.main.info

    @property
    def kind(self) -> str:
        """How it is stored, one of KINDS in quantize/scheme.py; packed codes cannot be transposed as they are."""
        packed = self.stored.encoding.integers is not None or self.stored.encoding.repack
        return "other int4" if self.transposed and packed else self.stored.kind


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
        return piece.stored.columns if piece.transposed else self.columns

    @property
    def kind(self) -> str:
        """How it is stored, one of KINDS in quantize/scheme.py."""
        kinds = {p.kind for p in self.pieces}
        return kinds.pop() if len(kinds) == 1 else "mixed"


def upright(bound: Bound) -> Bound:
    """k_b as the checkpoint has it, [heads, nope, kv_lora], and other tensors as they are."""
    if not any(p.transposed for p in bound.pieces):
        return bound
    heads, columns, rows = bound.spec.shape
    pieces = tuple(replace(p, at=h * rows, transposed=False) for h, p in enumerate(bound.pieces))
    return Bound(replace(bound.spec, shape=(heads, rows, columns)), pieces)


@dataclass(frozen=True, slots=True)
class Binding:
    """`redundant_head` is a tied checkpoint's own copy of the embedding: compared, not written.

    `left_out`: tensors of parts that are not converted, by what they are.
    """

    tensors: tuple[Bound, ...]
    redundant_head: StoredTensor | None
    left_out: Mapping[str, tuple[TensorInfo, ...]]


def bind(checkpoint: Checkpoint, family: Family, arch: Architecture) -> Binding:
    """Claim every tensor of the checkpoint; missing, misshapen and unclaimed ones are refused."""
    stored = read_storage(checkpoint)
    claimed: set[str] = set()
    tensors = []
    for spec in tensor_specs(arch):
        sources = _choose(family, spec, stored, checkpoint)
        pieces = _pieces(spec, sources, stored, checkpoint, arch)
        claimed.update(p.stored.name for p in pieces)
        tensors.append(Bound(spec, tuple(pieces)))
    head = family.sources[HEAD][0].name
    redundant = stored[head] if arch.tied and head in stored else None
    if redundant is not None:
        claimed.add(head)
    left_out: dict[str, list[TensorInfo]] = {}
    for name, tensor in stored.items():
        if name in claimed or any(re.fullmatch(p, name) for p in family.leftovers):
            continue
        part = next((what for p, what in family.left_out.items() if re.fullmatch(p, name)), None)
        if part is not None:
            left_out.setdefault(part, []).extend(p.info for p in tensor.parts)
        else:
            where = f"{checkpoint.shards[tensor.main.shard].name}: {brief(name)}"
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
    stored: Mapping[str, StoredTensor],
    checkpoint: Checkpoint,
    arch: Architecture,
) -> list[Piece]:
    source, names = chosen
    if source.of_heads is not None:
        return _head_pieces(arch, spec, source.of_heads, stored[names[0]], checkpoint)
    if source.halves:
        return _half_pieces(arch, spec, stored[names[0]], checkpoint)
    part, parts = source.part
    experts = spec.shape[0] if len(spec.shape) == 3 else 1
    rows = math.prod(spec.shape[:-1]) // experts
    pieces = []
    for e, name in enumerate(names):
        tensor = stored[name]
        where = f"{checkpoint.shards[tensor.main.shard].name}: {tensor.main.info.name}"
        if len(names) > 1 or "{e}" in source.name:
            expected = spec.shape[1:]
        elif parts > 1:
            expected = (experts, rows * parts, spec.shape[-1])
        else:
            expected = spec.shape
        _check(tensor, expected, where)
        if expected == spec.shape[1:] and len(spec.shape) == 3:
            pieces.append(Piece(tensor, 0, rows, e * rows))
        else:  # each expert of a fused tensor is a piece of its own, so that a dead one is noticed
            for x in range(experts):
                start = (x * parts + part) * rows
                pieces.append(Piece(tensor, start, rows, x * rows))
    return pieces


def _head_pieces(
    arch: Architecture, spec: TensorSpec, part: str, tensor: StoredTensor, checkpoint: Checkpoint
) -> list[Piece]:
    """k's or v's rows of every head of kv_b [heads · (nope + v), kv_lora]."""
    a = arch.blocks[spec.layer].attention
    assert isinstance(a, MLA)  # noqa: S101 - no other attention has such tensors
    where = f"{checkpoint.shards[tensor.main.shard].name}: {tensor.main.info.name}"
    _check(tensor, (a.heads * (a.nope + a.v), a.kv_lora), where)
    skip, rows = (0, a.nope) if part == "k" else (a.nope, a.v)
    starts = [h * (a.nope + a.v) + skip for h in range(a.heads)]
    return [Piece(tensor, s, rows, h * spec.shape[1], transposed=part == "k") for h, s in enumerate(starts)]


def _half_pieces(arch: Architecture, spec: TensorSpec, tensor: StoredTensor, checkpoint: Checkpoint) -> list[Piece]:
    """The two halves of every head, whose rows take turns."""
    where = f"{checkpoint.shards[tensor.main.shard].name}: {tensor.main.info.name}"
    _check(tensor, spec.shape, where)
    half = arch.rope.dims // 2
    return [
        Piece(tensor, start + n * half, half, start + n, step=2)
        for start in range(0, spec.shape[0], 2 * half)
        for n in range(2)
    ]


def _check(tensor: StoredTensor, shape: tuple[int, ...], where: str) -> None:
    """A plain weight must be one of numbers we know, and no promise of the config may be against it."""
    if tensor.shape != shape:
        raise wrong(where, f"shape {list(shape)}", list(tensor.shape))
    dtype = tensor.main.info.dtype
    if dtype not in tensor.encoding.dtypes:
        raise wrong(where, f"a dtype among {', '.join(tensor.encoding.dtypes)}", dtype)
    if tensor.promised:
        hint = "a module that is left out must be listed there"
        raise wrong(where, f"{tensor.promised} codes, as {KEY} says", f"plain {dtype}", hint)


def tied_pair(binding: Binding) -> tuple[Part, ...]:
    """The embedding and a tied checkpoint's own copy of it, or nothing."""
    if binding.redundant_head is None:
        return ()
    embedding = next(b for b in binding.tensors if b.spec.name == EMBEDDING).pieces[0]
    return embedding.stored.main, binding.redundant_head.main


def check_redundant_head(checkpoint: Checkpoint, binding: Binding, block: int = 1 << 23) -> None:
    """A tied checkpoint's head must be the embedding, byte for byte; reads both in blocks. Of streamed shards, whose
    pass compares the bytes, dtype and shape only.
    """
    if binding.redundant_head is None:
        return
    embedding, head = tied_pair(binding)
    stored = next(b for b in binding.tensors if b.spec.name == EMBEDDING).pieces[0].stored
    same = head.info.dtype == embedding.info.dtype and head.info.shape == embedding.info.shape
    same = same and len(stored.parts) == len(binding.redundant_head.parts) == 1
    paths = checkpoint.shards[head.shard].path, checkpoint.shards[embedding.shard].path
    if same and paths[0] and paths[1]:
        with paths[0].open("rb") as a, paths[1].open("rb") as b:
            for offset in range(0, head.info.nbytes, block):
                n = min(block, head.info.nbytes - offset)
                if os.pread(a.fileno(), n, head.info.offset + offset) != os.pread(
                    b.fileno(), n, embedding.info.offset + offset
                ):
                    same = False
                    break
    if not same:
        raise other_head(checkpoint, embedding, head)


def other_head(checkpoint: Checkpoint, embedding: Part, head: Part) -> InputError:
    """The error of a tied checkpoint whose head is not the embedding."""
    return wrong(
        f"{checkpoint.shards[head.shard].name}: {head.info.name}",
        f"a copy of {embedding.info.name}, since tie_word_embeddings is true",
        "other values", "set tie_word_embeddings to false in config.json if the head is its own",
    )  # fmt: skip
