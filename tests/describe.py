"""What a GGUF file holds, in a form that can be recorded and compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny import TOKENIZER_FILES

from sampan.checkpoint import SINGLE, open_folder
from sampan.gguf import Header, Kind, Tensor, read_header
from sampan.quantize.types import number_type_by_id


def describe(path: Path) -> dict[str, Any]:
    """Metadata (long arrays as hashes) and type, shape and SHA-256 of every tensor."""
    header = read_header(path)
    tensors = {
        t.name: f"{kind} {list(t.shape)} {hashlib.sha256(data).hexdigest()[:24]}"
        for t, kind, data in stored(path, header)
    }
    metadata = {}
    for key, value in header.metadata.items():
        shown = value.value
        if value.kind == Kind.ARRAY and len(shown) > 8:
            shown = hashlib.sha256(json.dumps(shown, ensure_ascii=False).encode()).hexdigest()[:24]
        metadata[key] = f"{value.kind.name} {json.dumps(shown, ensure_ascii=False)}"
    return {"metadata": metadata, "tensors": tensors}


def stored(path: Path, header: Header) -> Iterator[tuple[Tensor, str, NDArray[np.uint8]]]:
    """Every tensor, the name of its type, its bytes."""
    data = np.memmap(path, np.uint8, "r")
    for t in header.tensors:
        kind = number_type_by_id(t.type_id)
        assert kind is not None
        start = header.data_start + t.offset
        yield t, kind.name, data[start : start + int(np.prod(t.shape)) // kind.block * kind.block_bytes]


def input_hash(folder: Path, config: object) -> str:
    """One hash over a checkpoint's tensors by name, its small files, and `config` in place of config.json.

    `config` is what the model was made from: what transformers writes changes with its version.
    """
    h = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    checkpoint = open_folder(folder)
    with (folder / SINGLE).open("rb") as f:
        for name, (_, info) in sorted(checkpoint.tensors().items()):
            data = os.pread(f.fileno(), info.nbytes, info.offset)
            h.update(f"{name} {info.dtype} {list(info.shape)} {hashlib.sha256(data).hexdigest()}\n".encode())
    for file in TOKENIZER_FILES:
        h.update(f"{file} {hashlib.sha256((folder / file).read_bytes()).hexdigest()}\n".encode())
    return h.hexdigest()
