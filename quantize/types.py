"""Number types by their usual names: how many values share a block, how many bytes a block takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sampan.errors import wrong


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
