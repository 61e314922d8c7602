"""An engine that chooses at random, with a vocabulary that is hard to hold to anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from server_engine import Scripted

END, OTHER_END, NOTHING, THINK, DONE, CONTROL = 256, 257, 258, 259, 260, 261
MORE = [b'{"', b'":', b"ab", b"ab", "é".encode(), "中".encode()[:2], b'"}', b"true", b" \n", b">\n\n{"]
MORE += [b"</think>x", b"k>"]


class Noise(Scripted):
    """An engine of bytes and some longer words, which chooses at random."""

    def __init__(self, *, template: str = "{{ messages[0].content }}") -> None:
        super().__init__(lambda text: "", template=template)
        self.pieces = [bytes([i]) for i in range(256)] + [b""] * 3 + [b"<think>", b"</think>", b""] + MORE
        self.vocab = len(self.pieces)
        self.noise = np.random.default_rng(0)

    def piece(self, token: int, *, control: bool = False) -> bytes:
        return b"<control>" if control and token == CONTROL else self.pieces[token]

    def is_end(self, token: int) -> bool:
        return token in (END, OTHER_END)

    def evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        return self.noise.standard_normal((wanted, self.vocab), np.float32) * 3
