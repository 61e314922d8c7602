"""A small SentencePiece model (BPE over bytes), trained by the tokenizers package on the evaluation texts."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

TEXTS = Path(__file__).parents[1] / "validate" / "texts"
sys.path.insert(0, str(Path(__file__).parent / "hostile"))

from pieces import field, piece, spm, varint  # noqa: E402

CONTROL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
RUNS = ("▁▁", "▁▁▁▁", "▁▁▁")  # of the lowest score, though their ids are low: as Llama's


@cache
def words(count: int) -> tuple[str, ...]:
    """The first `count` texts that merging makes, and every letter."""
    reader = Tokenizer(models.BPE())
    reader.normalizer = normalizers.Replace(" ", "▁")
    reader.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=count, show_progress=False)
    reader.train([str(TEXTS / name) for name in ("en.txt", "zh.txt", "code.txt")], trainer)
    found = sorted(reader.get_vocab().items(), key=lambda item: item[1])
    return tuple(sorted((t for t, _ in found), key=lambda t: len(t) == 1))


def model(size: int, *, prefix: bool = True, own: tuple[str, ...] = (), **settings: Any) -> bytes:
    """`size` pieces: control pieces, bytes, runs of spaces, `own` user-defined ones, words with falling scores."""
    start = b"".join(piece(t.encode(), 0.0, 2 if n == 0 else 3) for n, t in enumerate(CONTROL))
    start += b"".join(piece(f"<0x{b:02X}>".encode(), 0.0, 6) for b in range(256))
    start += b"".join(piece(t.encode(), -1e9) for t in RUNS) + b"".join(piece(t.encode(), 0.0, 4) for t in own)
    rest = [t for t in words(size - 300) if t not in RUNS][: size - len(CONTROL) - 256 - len(RUNS) - len(own)]
    body = b"".join(piece(t.encode(), -float(n)) for n, t in enumerate(rest))
    return spm(body, start, normalizer={3: int(prefix)}, **settings)


__all__ = ["field", "model", "varint", "words"]
