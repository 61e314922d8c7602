"""Number types by their usual names: how many values share a block, how many bytes a block takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sampan.errors import wrong

UNWEIGHTED = frozenset(("f32", "f16", "bf16", "q8_0", "mxfp4"))  # ggml encodes them without looking at weights


@dataclass(frozen=True, slots=True)
class NumberType:
    """`id` is ggml's number for the type; `block` values along a row take `block_bytes` bytes."""

    name: str
    id: int
    block: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` values; `columns` is a multiple of `block`."""
        return columns // self.block * self.block_bytes

    def part_bytes(self, columns: int) -> tuple[int, ...]:
        """Bytes of a row in each array that the type is stored in: one."""
        return (self.row_bytes(columns),)

    @property
    def bits(self) -> float:
        """Bits per value, scales included."""
        return 8 * self.block_bytes / self.block

    @property
    def weighted(self) -> bool:
        """Whether `encode` makes anything of column weights."""
        return self.name not in UNWEIGHTED

    def encode(self, rows: NDArray[np.float32], out: NDArray[np.uint8], weights: NDArray[np.float32] | None) -> None:
        """As `codec.encode_rows`."""
        from . import ggml  # which knows this module

        ggml.encode_rows(self, rows, out, weights)

    def decode(self, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """As `codec.decode_rows`."""
        from . import ggml

        ggml.decode_rows(self, data, out)

    def pack(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.float32],
        zeros: NDArray[np.uint8] | None,
        out: NDArray[np.uint8],
    ) -> None:
        """As `codec.pack_integers`: q4_0 alone, which has no zero points."""
        from . import ggml

        if self.name != "q4_0" or zeros is not None:
            raise AssertionError(f"integers cannot be packed into {self.name}")
        ggml.pack_q4_0(codes, scales, out)
        ggml.validate_rows(self, out)


@cache
def _table() -> dict[str, NumberType]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return {t.name.lower(): NumberType(t.name.lower(), int(t), *GGML_QUANT_SIZES[t]) for t in GGMLQuantizationType}


def number_type(name: str) -> NumberType:
    """The type called `name`, such as `q4_k` or `bf16`."""
    if name not in _table():
        raise wrong("number type", f"one of {', '.join(_table())}", repr(name))
    return _table()[name]


def is_number_type(name: str) -> bool:
    return name in _table()


def number_type_by_id(type_id: int) -> NumberType | None:
    """The type with ggml's number `type_id`, or None for one that the gguf package does not know."""
    return next((t for t in _table().values() if t.id == type_id), None)
