"""A plan knows every output byte before any weight is read: types, shapes, offsets, and where rows come from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampan.artifact import OutputFile
from sampan.checkpoint import Checkpoint
from sampan.demand import Kept
from sampan.quantize import Scheme, TensorFacts, TensorType

from .architecture import KDA, MLA, Architecture, Attention, MoE, TensorSpec, kv_heads
from .binding import Binding, Bound
from .family import Family
from .rows import Arrangement
from .tokenizer import Tokenizer

_QKV = re.compile(r"\.attn_(q|k|v|qkv)\.weight$")


@dataclass(frozen=True, slots=True)
class Slice:
    """A canonical tensor inside an output tensor: its rows are the rows `at`, `at + step`, …"""

    name: str
    shape: tuple[int, ...]
    at: int
    step: int


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One output tensor: `file` is its number in the plan; `offsets`, one for each array of its type, count from
    the start of that file. `slices`: the canonical tensors in it, where it is not one itself.
    """

    bound: Bound
    type: TensorType
    file: int
    offsets: tuple[int, ...]
    slices: tuple[Slice, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.bound.rows * self.type.row_bytes(self.bound.columns)


@dataclass(frozen=True, slots=True)
class Finish:
    """Names of files beside those of the plan, and what the manifest says of them."""

    files: tuple[str, ...]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """`scheme` is the exact name, also where the user asked for the portable int4 or int8.

    `notes`: what a user of the output has to know, a sentence each. `finish`: what is done when all weights are
    written, in the folder where they lie, with so many threads; its files are part of the output. `later`: about how
    many bytes these have; `memory`: about how many it takes at its peak.
    """

    scheme: str
    arch: Architecture
    files: tuple[OutputFile, ...]
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...] = ()
    finish: Callable[[Path, int], Finish] | None = None
    later: int = 0
    memory: int = 0

    @property
    def nbytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def bits_per_weight(self) -> float:
        values = sum(t.bound.rows * t.bound.columns for t in self.tensors)
        return 8 * sum(t.nbytes for t in self.tensors) / values

    def digest(self) -> str:
        """SHA-256 over everything that decides the output besides the weights' values."""
        h = hashlib.sha256()
        for f in self.files:
            h.update(f"{f.path.name} {f.size} {hashlib.sha256(f.header).hexdigest()}\n".encode())
        for t in self.tensors:
            h.update(f"{t.bound.spec.name} {t.type.name} {t.file} {t.offsets}\n".encode())
            for p in t.bound.pieces:
                h.update(f"  {p.stored.label} {p.start} {p.rows} {p.at} {p.step} {[m.name for m in p.maps]}\n".encode())
                for part in p.stored.parts:
                    h.update(f"    {part.shard} {part.info.name} {part.info.dtype}\n".encode())
        return h.hexdigest()


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a format; None leaves a thing to it.

    `split`: the largest number of data bytes in one file. `context`: positions that an artifact with position tables
    is made for. `accuracy`: ONNX Runtime's accuracy level of matrix products, 0 (float32) or 4 (int8 activations).
    `kv`: the number type of a graph's cache, "f32" or "int8".
    `weighted`: there are statistics of the matrices' inputs. `dry`: nothing will be written, so that what only the
    writing needs, such as a compiler, may be missing. `tokenizer`: the checkpoint's, where it has been read already.
    """

    out: Path
    scheme_name: str
    scheme: Scheme
    split: int | None = None
    context: int | None = None
    accuracy: int | None = None
    kv: str | None = None
    weighted: bool = False
    dry: bool = False
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """An output format: `plan` lays the files out, `portable` maps int4 and int8 to its best schemes.

    `arrange`: how the rows of a canonical tensor stand there; None where they stand as they are. `inputs`: what
    statistics call the inputs that a matrix is multiplied with there; `order`: which column of those each of its
    columns is, None where they stand alike. `targets`: the format for a device, by its name. `drafts`: whether it has a
    place for blocks that predict further tokens. `kept`: what a layer keeps of earlier tokens when it runs. `holds`:
    whether a scheme is one for it. `positions`: whether an output is made for a number of them. `copies`: how often a
    device has the weights, where they are compiled; `compiled`: the bytes of one there.
    """

    portable: Mapping[str, str]
    plan: Callable[[Checkpoint, Family, Architecture, Binding, Request], Plan]
    kept: Callable[[Attention], Kept]
    holds: Callable[[Scheme], bool]
    arrange: Callable[[Family, Architecture, TensorSpec], Arrangement | None] = lambda family, arch, spec: None
    inputs: Callable[[Architecture, TensorSpec], str] = lambda arch, spec: spec.name
    order: Callable[[Family, Architecture, TensorSpec], NDArray[np.intp] | None] = lambda family, arch, spec: None
    targets: Callable[[Format, str], Format] | None = None
    drafts: bool = False
    copies: int = 0
    compiled: Callable[[Plan, PlannedTensor], int] = lambda plan, tensor: tensor.nbytes
    positions: bool = False


def facts(arch: Architecture, bound: Bound, *, wide: bool = False, weighted: bool = False) -> TensorFacts:
    """What a scheme's rules may ask about a tensor; `wide` and `weighted` as in TensorFacts."""
    attention, first = arch.attentions[0], arch.blocks[0].attention
    layer, layers = _place(arch, bound)
    return TensorFacts(
        name=bound.spec.name,
        # llama.cpp counts dimensions without trailing ones: a [1, n] matrix is a vector
        dims=1 if bound.rows == 1 else len(bound.spec.shape),
        columns=bound.columns,
        layer=layer,
        layers=layers,
        # llama.cpp asks the first layer, and one of KDA has no heads in the cache
        gqa=0 if isinstance(first, KDA) else attention.heads // kv_heads(attention),
        experts=max(b.ffn.experts if isinstance(b.ffn, MoE) else 0 for b in arch.blocks),
        tied=arch.tied,
        wide=wide,
        stored=bound.kind,
        weighted=weighted,
    )


def _place(arch: Architecture, bound: Bound) -> tuple[int, int]:
    """A tensor's layer and the number of layers; llama.cpp counts q, k and v among the layers that have them."""
    layer, blocks = bound.spec.layer, arch.all_blocks
    if not _QKV.search(bound.spec.name) or isinstance(blocks[layer].attention, MLA):
        return layer, len(blocks)
    having = [i for i, b in enumerate(blocks) if not isinstance(b.attention, MLA)]
    return having.index(layer), len(having)
