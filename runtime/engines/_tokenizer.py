"""tokenizer.json for engines that do not bring a tokenizer, read by the tokenizers package."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from sampan.errors import brief, wrong
from sampan.files import bounded_json, read_bytes, there

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class JsonTokenizer:
    """Encode texts, and give the bytes of single tokens."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        if not there(path):
            raise wrong(path, "a tokenizer", "no such file")
        text = bounded_json(read_bytes(path), path)
        try:
            self._reader: Any = Tokenizer.from_str(text)
        except Exception as e:  # the package raises plain Exception
            raise wrong(path, "a tokenizer.json that the tokenizers package reads", brief(str(e))) from None
        self._reader.no_truncation()  # as transformers does with every call
        self._reader.no_padding()
        self._added = self._reader.get_added_tokens_decoder()
        self._byte_level = "ByteLevel" in str(self._reader.decoder)
        self.size: int = self._reader.get_vocab_size()

    def encode(self, text: str, *, special: bool, around: bool) -> list[int]:
        """Ids of a text, as `Session.tokenize`."""
        self._reader.encode_special_tokens = not special
        ids: list[int] = self._reader.encode(text, add_special_tokens=around).ids
        return ids

    def added(self) -> dict[str, bool]:
        """As `Engine.added`."""
        return {t.content: t.special for t in self._added.values()}

    def piece(self, token: int, *, control: bool) -> bytes:
        """As `Engine.piece`; unused ids stand for nothing."""
        if (added := self._added.get(token)) is not None:
            return b"" if added.special and not control else bytes(added.content, "utf-8")
        text = self._reader.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            return bytes(_bytes()[c] for c in text)
        match = BYTE.fullmatch(text)
        return bytes([int(match[1], 16)]) if match else bytes(text.replace("▁", " "), "utf-8")


@cache
def _bytes() -> dict[str, int]:
    """Character of byte-level BPE → byte (GPT-2's bytes_to_unicode): printable ones as they are, the rest from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}
