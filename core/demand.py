"""What an artifact asks of the machine that runs it, and what one layer keeps of the tokens behind it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """What the attention of one layer keeps: `cell` bytes of each token, `state` bytes whatever their number.

    `width`: how many multiplications each query head makes with the key and the value of one earlier token.
    """

    cell: int = 0
    state: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes: `files` on the device, `weights` of them in memory, `cell` of a token in the cache of all layers, `state`
    of all layers, and `read`, the weights that one further token needs.

    Multiplications: `products` of one token with weights, `head` with the head's, `attention` of one token with
    one earlier token. `words` and `hidden` are sizes of a token's logits and activations, `inner` of all inside a
    feed-forward layer or its chosen experts; `bits` of a weight.
    `parts`: bytes of each compiled part, none where nothing is compiled.
    """

    files: int
    weights: int
    cell: int
    state: int
    read: int
    products: int
    head: int
    attention: int
    words: int
    hidden: int
    inner: int
    bits: float
    parts: tuple[int, ...] = ()

    def cache(self, context: int) -> int:
        """Bytes of the cache for so many tokens, states included."""
        return self.cell * context + self.state

    def operations(self, tokens: int, seen: int | None = None) -> int:
        """Multiplications and additions of a prompt of so many tokens, whose last one's logits are computed.

        `seen`: how many earlier tokens each looks at; None: those before it and itself.
        """
        pairs = tokens * seen if seen is not None else tokens * (tokens + 1) // 2
        return 2 * (self.products * tokens + self.head + self.attention * pairs)
