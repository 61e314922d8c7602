"""Bind every canonical tensor to the checkpoint tensors it is made of, before any weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, brief, wrong
from sampan.quantize.stats import Inputs
from sampan.safetensors import TensorInfo

from .architecture import EMBEDDING, HEAD, Architecture, TensorSpec, tensor_specs
from .encoding import Part, StoredTensor
from .family import Family, is_draft
from .quantization import KEY, ZERO_BIASES, read_storage
from .rows import Arrangement, Cut, Layout, Map, Stack
from .storage.plain import TURNED, turned

WITHOUT_DRAFTS = "--no-mtp leaves the head out"
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")  # of torch.compile, DataParallel and peft


@dataclass(frozen=True, slots=True)
class Piece:
    """`rows` rows of one stored tensor, seen as a matrix, from `start`; output rows `at`, `at + step`, …

    `maps`: functions of their values, applied in order. `transposed`: they become all columns of output rows from `at`
    instead, and are converted in one piece. `inputs`: statistics of what the columns of its output rows are multiplied
    with.
    """

    stored: StoredTensor
    start: int
    rows: int
    at: int
    step: int = 1
    transposed: bool = False
    maps: tuple[Map, ...] = ()
    inputs: Inputs | None = field(default=None, compare=False)

    @property
    def shard(self) -> int:
        return self.stored.main.shard

    @property
    def info(self) -> TensorInfo:
        """The tensor that holds the values or codes."""
        return self.stored.main.info

    @property
    def whole_rows(self) -> bool:
        """Whether output rows are stored rows: only then can codes be kept as they are."""
        return not self.transposed and not self.maps

    @property
    def kind(self) -> str:
        """How it is stored, one of KINDS in quantize/scheme.py."""
        packed = self.stored.encoding.integers is not None or self.stored.encoding.repack
        return "other int4" if packed and not self.whole_rows else self.stored.kind


@dataclass(frozen=True, slots=True)
class Bound:
    """A tensor of canonical name and its pieces, which cover its rows once."""

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


def arranged(bound: Bound, arrangement: Arrangement | None) -> Bound:
    """A bound canonical tensor as a format wants its rows; None: as it stands. A vector is a row."""
    if arrangement is None:
        return bound
    maps = (arrangement.map,) if arrangement.map else ()
    pieces = []
    for run in arrangement.runs:
        for piece in bound.pieces:
            first = max(run.start, piece.at)
            rows = min(run.start + run.rows, piece.at + piece.rows) - first
            if rows <= 0:
                continue
            if run.transposed and rows != run.rows:
                raise AssertionError(f"{bound.spec.name}: a matrix that is transposed lies in two pieces")
            at = run.at + (first - run.start) * run.step
            pieces.append(
                replace(
                    piece, start=piece.start + first - piece.at, rows=rows, at=at, step=run.step,
                    transposed=run.transposed, maps=piece.maps + maps,
                )
            )  # fmt: skip
    return Bound(replace(bound.spec, shape=arrangement.shape), tuple(pieces))


@dataclass(frozen=True, slots=True)
class Binding:
    """`redundant_head` is a tied checkpoint's own copy of the embedding: compared, not written.

    `left_out`: tensors of parts that are not converted, by what they are. `zeros`: those of them that must be zero.
    """

    tensors: tuple[Bound, ...]
    redundant_head: StoredTensor | None
    left_out: Mapping[str, tuple[TensorInfo, ...]]
    zeros: tuple[Part, ...] = ()


def bind(checkpoint: Checkpoint, family: Family, arch: Architecture) -> Binding:
    """Claim every tensor of the checkpoint; missing, misshapen and unclaimed ones are refused."""
    stored = _with_prefix(read_storage(checkpoint), family)
    claimed: set[str] = set()
    tensors = []
    for spec in tensor_specs(arch):
        if spec.layer < len(arch.blocks):
            layout = _choose(family.sources, spec, stored, checkpoint)
            pieces = _pieces(spec, layout, stored, checkpoint, arch)
        else:
            pieces = _draft(family, spec, stored, checkpoint, arch)
        claimed.update(p.stored.name for p in pieces)
        tensors.append(Bound(spec, tuple(pieces)))
    (head,) = _names(family.sources[HEAD][0], TensorSpec(HEAD, ()))
    redundant = stored[head] if arch.tied and head in stored else None
    if redundant is not None:
        claimed.add(head)
    left_out: dict[str, list[TensorInfo]] = {}
    zeros: list[Part] = []
    for name, tensor in stored.items():
        if name in claimed or any(re.fullmatch(p, name) for p in family.leftovers):
            continue
        draft = bool(arch.drafts) and is_draft(family, name)
        part = next((what for p, what in family.left_out.items() if not draft and re.fullmatch(p, name)), None)
        layer = None if draft else re.fullmatch(r"(?:.*\.)?layers\.(\d+)\..+", name)
        if part is None and layer and int(layer[1]) >= len(arch.blocks):  # DeepSeek-V3's and GLM's are the last ones
            part = "multi-token prediction layers"
        if part is None and tensor.aside and tensor.main.info.dtype in tensor.encoding.dtypes:
            part = tensor.aside
            zeros += [tensor.main] if part == ZERO_BIASES else []
        if part is not None:
            left_out.setdefault(part, []).extend(p.info for p in tensor.parts)
        else:
            where = f"{checkpoint.shards[tensor.main.shard].name}: {brief(name)}"
            hint = WITHOUT_DRAFTS if draft else ""
            raise wrong(where, f"only tensors that {arch.family} knows", "one that no rule claims", hint)
    return Binding(tuple(tensors), redundant, {part: tuple(infos) for part, infos in left_out.items()}, tuple(zeros))


def _with_prefix(stored: dict[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    """The names of a whole model for a checkpoint of its base alone, as transformers reads both."""
    (embedding,) = _names(family.sources[EMBEDDING][0], TensorSpec(EMBEDDING, ()))
    prefix, _, base = embedding.partition(".")
    if embedding in stored or base not in stored:
        return stored
    (head,) = _names(family.sources[HEAD][0], TensorSpec(HEAD, ()))
    names = {name: name if name == head else f"{prefix}.{name}" for name in stored}
    return {names[name]: replace(tensor, name=names[name]) for name, tensor in stored.items()}


def _draft(
    family: Family, spec: TensorSpec, stored: Mapping[str, StoredTensor], checkpoint: Checkpoint, arch: Architecture
) -> list[Piece]:
    """The pieces of a tensor of a draft. Quantisers copy such a head as it is, whatever they say of other modules."""
    try:
        layout = _choose(family.drafts, spec, stored, checkpoint)
        plain = {name: replace(stored[name], promised="") for name in _names(layout, spec)}
        return _pieces(spec, layout, plain, checkpoint, arch)
    except InputError as e:
        raise InputError(f"{e}; {WITHOUT_DRAFTS}") from None


def _choose(
    sources: Mapping[str, tuple[Layout, ...]], spec: TensorSpec, stored: Mapping[str, object], checkpoint: Checkpoint
) -> Layout:
    """The first layout whose tensors exist."""
    layouts = sources[spec.name.replace(f"blk.{spec.layer}.", "blk.{i}.", 1)]
    for layout in layouts:
        names = _names(layout, spec)
        if names[0] in stored:
            missing = next((n for n in names if n not in stored), None)
            if missing is None:
                return layout
            raise wrong(checkpoint.folder, f"the tensor {missing}", "none of that name in any shard")
    first = _names(layouts[0], spec)[0]
    hint = "tie_word_embeddings is false in config.json" if spec.name == HEAD else ""
    wrapper = next((w for w in WRAPPERS if any(n.startswith(w) for n in stored)), None)
    if wrapper is not None:
        hint = f"names here begin with {wrapper!r}, which a wrapper of training put there: save the model that it wraps"
    raise wrong(checkpoint.folder, f"the tensor {first}", "none of that name in any shard", hint)


def _names(layout: Layout, spec: TensorSpec) -> list[str]:
    if isinstance(layout, Stack):
        return [name for source in layout.sources for name in _names(source, spec)]
    name = layout.name.replace("{i}", str(spec.layer))
    return [name.replace("{e}", str(e)) for e in range(spec.shape[0])] if "{e}" in name else [name]


def _pieces(
    spec: TensorSpec, layout: Layout, stored: Mapping[str, StoredTensor], checkpoint: Checkpoint, arch: Architecture
) -> list[Piece]:
    """The pieces of a canonical tensor: one for each expert or head where it has three dimensions."""
    if isinstance(layout, Stack):
        pieces, at = list[Piece](), 0
        for source, rows in zip(layout.sources, layout.rows(arch.all_blocks[spec.layer]), strict=True):
            part = replace(spec, shape=(rows, *spec.shape[1:]))
            pieces += [replace(p, at=at + p.at) for p in _pieces(part, source, stored, checkpoint, arch)]
            at += rows
        return pieces
    matrix = math.prod(spec.shape[:-1]) // (spec.shape[0] if len(spec.shape) == 3 else 1)  # rows that belong together
    cut = Cut(0, matrix, matrix) if layout.cut is None else layout.cut(arch.all_blocks[spec.layer])
    each = "{e}" in layout.name
    rows = math.prod(spec.shape[1:-1] if each else spec.shape[:-1])
    maps = (layout.map,) if layout.map else ()
    pieces = []
    for e, name in enumerate(_names(layout, spec)):
        tensor = stored[name]
        where = f"{checkpoint.shards[tensor.main.shard].name}: {tensor.main.info.name}"
        wanted = _stored_shape(spec.shape[1:] if each else spec.shape, cut, tensor.shape)
        if layout.turned and tensor.shape != wanted:  # of two that are square transformers takes the first
            tensor = turned(tensor, where)
        _check(tensor, wanted, where)
        for n in range(rows // cut.take):
            pieces.append(
                Piece(tensor, n * cut.period + cut.offset, cut.take, e * rows + n * cut.take, maps=maps)
            )  # fmt: skip
    return pieces


def _stored_shape(shape: tuple[int, ...], cut: Cut, found: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a stored tensor must have, of which `shape` is cut. Dimensions of one may stand before it, and
    that of a convolution over single channels has one between.
    """
    rows = math.prod(shape[:-1]) // cut.take * cut.period
    wanted = shape if cut.take == cut.period else (rows, shape[-1])
    if len(shape) == 3 and len(found) == 3:
        wanted = (shape[0], rows // shape[0], shape[-1])
    more = len(found) - len(wanted)
    if more > 0 and found == (1,) * more + wanted:
        return found
    return found if len(found) == 3 and found[1] == 1 and (found[0], found[2]) == wanted else wanted


def _check(tensor: StoredTensor, shape: tuple[int, ...], where: str) -> None:
    """A plain weight must be one of numbers we know, and no promise of the config may be against it."""
    if tensor.shape != shape:
        found = tensor.shape
        if tensor.encoding is TURNED:  # said as they lie in the file
            shape, found = (*shape[:-2], shape[-1], shape[-2]), tensor.main.info.shape
        raise wrong(where, f"shape {list(shape)}", list(found))
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


def other_head(checkpoint: Checkpoint, embedding: Part, head: Part) -> InputError:
    """The error of a tied checkpoint whose head is not the embedding."""
    return wrong(
        f"{checkpoint.shards[head.shard].name}: {head.info.name}",
        f"a copy of {embedding.info.name}, since tie_word_embeddings is true",
        "other values", "set tie_word_embeddings to false in config.json if the head is its own",
    )  # fmt: skip
