"""What a storage encoding is: how a checkpoint keeps the numbers of one weight, in one tensor or in several.

A quantised weight is a main tensor (the codes) and companions (scales, zero points, a shape), which may
lie in different shards. `reads` says which bytes some rows need, `decode` turns them into float32.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampan.errors import brief, wrong
from sampan.registry import load_all
from sampan.safetensors import TensorInfo

from .config import Config

Buffer = NDArray[np.uint8]


class Files(Protocol):
    """Shard number → open file."""

    def __getitem__(self, shard: int, /) -> int: ...


ALIGNMENT = 16  # bytes, of each part in a row buffer


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the checkpoint and the number of its shard."""

    shard: int
    info: TensorInfo


@dataclass(frozen=True, slots=True)
class Read:
    """`count` runs of `nbytes` bytes, `stride` bytes apart, the first `start` bytes into part number `part`."""

    part: int
    start: int
    nbytes: int
    count: int = 1
    stride: int = 0

    @property
    def total(self) -> int:
        return self.nbytes * self.count


@dataclass(frozen=True, slots=True)
class Scaling:
    """Which values share a scale: blocks of `rows` × `columns` of them, 0 for all.

    `zero_offset`: what is added to a stored zero point. `act_order`: columns name their group in g_idx.
    """

    rows: int
    columns: int
    symmetric: bool = True
    zero_offset: int = 0
    act_order: bool = False
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One weight as it is stored. `name` is what families know it by, `shape` that of its values.

    The first of `parts` holds the codes. `promised`: the encoding that the config gives to a plain weight.
    `aside`: what a tensor is that quantisers write beside the weights, if no family claims it.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: tuple[Part, ...]
    scaling: Scaling = Scaling(1, 1)
    promised: str = ""
    aside: str = ""

    @property
    def main(self) -> Part:
        return self.parts[0]

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def step(self) -> int:
        """Rows that are best read together: they share scales or words."""
        return max(self.scaling.rows, self.encoding.step)

    @property
    def label(self) -> str:
        """`bf16`, `fp8 128×128`, `gptq 1×128`."""
        if self.encoding.name == "plain":
            return self.main.info.dtype.lower()
        rows, columns = (n or "all" for n in (self.scaling.rows, self.scaling.columns))
        return f"{self.encoding.name} {rows}×{columns}"

    @property
    def kind(self) -> str:
        """What rules of a scheme ask: one of KINDS in quantize/scheme.py."""
        if self.encoding.integers is None:
            return self.label if self.encoding.name == "plain" else self.encoding.name
        group = self.scaling.columns or self.columns
        if self.scaling.act_order or group % 32:
            return "other int4"
        if self.scaling.symmetric:
            return "int4"
        return "int4 with zeros by 128" if group % 128 == 0 else "int4 with zeros by 32"


Decode = Callable[[StoredTensor, Sequence[Buffer], int, NDArray[np.float32]], None]
Repack = Callable[[StoredTensor, Sequence[Buffer], int, int, Buffer], None]
Integers = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """`formats`: quant_method, compressed-tensors/format or modelopt/algorithm, as configs name it.

    `main`: suffix of the codes' name; empty: their dtype alone tells.

    `rule` reads the config (and the group of it that names the format). `open` finds and checks the companions.
    `step`: rows that share words. `reads(stored, start, rows)`: the bytes that some rows need, the codes first.
    `zero_biases`: writers add biases of zeros to modules that have none.
    `decode(stored, buffers, start, out)`: those bytes → float32 rows. `repack`: number type →
    `(stored, buffers, start, rows, out)`, which writes the same numbers in that type. `integers(stored, buffers, start,
    rows)`, of 4-bit encodings: codes [rows, columns], scales [rows, groups] and zero points [rows, groups], or None
    where they are 8.
    """

    name: str
    formats: tuple[str, ...] = ()
    rule: Callable[[Config, Config], Rule] | None = None
    main: str = "weight"
    dtypes: tuple[str, ...]
    open: Callable[[str, Tensors, Scaling], StoredTensor] | None = None
    step: int = 1
    zero_biases: bool = False
    reads: Callable[[StoredTensor, int, int], tuple[Read, ...]]
    decode: Decode
    repack: Mapping[str, Repack] = field(default_factory=dict)
    integers: Callable[[StoredTensor, Sequence[Buffer], int, int], Integers] | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How the config says modules are stored. `covers(module)`: True, False (it must be plain), None (either)."""

    encoding: Encoding
    scaling: Scaling
    covers: Callable[[str], bool | None]


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a checkpoint by name, for finding companions."""

    tensors: Mapping[str, tuple[int, TensorInfo]]
    shards: Sequence[str]

    def where(self, name: str) -> str:
        return f"{self.shards[self.tensors[name][0]]}: {brief(name)}"

    def main(self, name: str, dtypes: Sequence[str], dimensions: int) -> Part:
        """The codes: their dtype and number of dimensions checked."""
        shard, info = self.tensors[name]
        if info.dtype not in dtypes:
            raise wrong(self.where(name), f"the dtype {' or '.join(dtypes)}", info.dtype)
        if len(info.shape) != dimensions or not math.prod(info.shape):
            raise wrong(self.where(name), f"{dimensions} dimensions, none empty", f"shape {list(info.shape)}")
        return Part(shard, info)

    def companion(
        self, main: str, name: str, dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]], why: str = ""
    ) -> Part:
        """A tensor that `main` needs; missing, or of another dtype or shape, it is refused."""
        if name not in self.tensors:
            raise wrong(self.where(main), f"{brief(name)} beside it", "none of that name in any shard")
        shard, info = self.tensors[name]
        if info.dtype not in dtypes:
            raise wrong(self.where(name), f"a dtype among {', '.join(dtypes)}", info.dtype)
        if info.shape not in shapes:
            raise wrong(self.where(name), f"shape {list(shapes[0])}{why}", list(info.shape))
        return Part(shard, info)


def encodings() -> dict[str, Encoding]:
    """Every encoding by name."""
    found: dict[str, Encoding] = load_all("sampan.convert.storage", "ENCODING")
    return found


def buffer_size(reads: Sequence[Read]) -> int:
    """Bytes of a buffer that holds `reads`, each aligned."""
    return sum(r.total + -r.total % ALIGNMENT for r in reads)


def read_parts(
    stored: StoredTensor, reads: Sequence[Read], fds: Files, raw: Buffer, streamed: bool = False
) -> list[Buffer]:
    """Fill `raw` with the bytes of `reads` and return them one by one; `streamed`: the first stands there already."""
    buffers, at = [], 0
    for n, read in enumerate(reads):
        buffer = raw[at : at + read.total]
        if n or not streamed:
            part = stored.parts[read.part]
            view, position = memoryview(buffer.data), part.info.offset + read.start
            for _ in range(read.count):
                run, view = view[: read.nbytes], view[read.nbytes :]
                if os.preadv(fds[part.shard], [run], position) != read.nbytes:
                    raise wrong(brief(part.info.name), f"{read.nbytes} bytes", "fewer", "the file changed")
                position += read.stride
        buffers.append(buffer)
        at += read.total + -read.total % ALIGNMENT
    return buffers
