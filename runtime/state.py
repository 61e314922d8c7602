"""What a Session has evaluated, as a file: reopened in place of a long prefill.

The file: MAGIC, version and length of the header (two uint32), the header as JSON, the tokens (int32), the engine's
state, and BLAKE2b of all that is in front of it; little-endian. The checksum finds damage, not malice: the state is in
the engine's own form, whose reader checks what it reads, and was not made for strangers.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, brief, wrong
from sampan.files import parse_json, read_start, size_of, there

from .engine import Engine

MAGIC, VERSION = b"SAMPANST", 1
FRONT = struct.Struct("<8sII")
LONGEST_HEADER = 4096
DIGEST = 32  # bytes


@dataclass(frozen=True, slots=True)
class Known:
    """What a state fits: all of it must be the same where it is loaded."""

    model: str
    engine: str  # name and version
    kv: str
    context: int


def save(path: Path, known: Known, tokens: Sequence[int], engine: Engine) -> None:
    """Write a state beside `path`, then rename it. Raises InputError where another kind of file is there."""
    if there(path) and read_start(path, len(MAGIC)) != MAGIC:
        raise InputError(f"{path}: this is there already and is no saved state; choose another name")
    size = engine.state_bytes()
    header = json.dumps(asdict(known) | {"tokens": len(tokens), "bytes": size}).encode()
    front = FRONT.pack(MAGIC, VERSION, len(header)) + header + np.asarray(tokens, "<i4").tobytes()
    whole = len(front) + size + DIGEST
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)  # a state tells the text
        try:
            os.posix_fallocate(fd, 0, whole)  # a full disk shows here, not as a signal below
            file = np.memmap(part, np.uint8, "r+", shape=(whole,))
            file[: len(front)] = np.frombuffer(front, np.uint8)
            engine.copy_state(file[len(front) : -DIGEST])
            file[-DIGEST:] = _digest(file)
            file.flush()
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(path)
    except OSError as e:
        raise InputError(f"{path}: the state cannot be saved: {e.strerror or e}") from None
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, known: Known, engine: Engine) -> list[int]:
    """Give a state to the engine; the tokens that it holds then.

    Raises InputError for another model, engine, number type or context, and for a file that is cut or damaged: nothing
    of it reaches the engine.
    """
    size = size_of(path)
    magic, version, length = FRONT.unpack(read_start(path, FRONT.size).ljust(FRONT.size, b"\0"))
    if magic != MAGIC:
        raise wrong(path, "a saved state", "something else")
    if version != VERSION:
        raise wrong(f"{path}: version", VERSION, version, "save it again with this version of sampan")
    if length > LONGEST_HEADER:
        raise wrong(f"{path}: header", f"at most {LONGEST_HEADER} bytes", length)
    header = parse_json(read_start(path, FRONT.size + length)[FRONT.size :], path)
    said = header if isinstance(header, dict) else {}
    for key in (f.name for f in fields(Known)):
        if said.get(key) != (here := getattr(known, key)):
            raise wrong(f"{path}: {key}", here, brief(said.get(key)), "it was saved elsewhere: evaluate the text again")
    count, state = said.get("tokens"), said.get("bytes")
    if type(count) is not int or not 0 < count <= known.context:
        raise wrong(f"{path}: tokens", f"1 to {known.context}", brief(count))
    at = FRONT.size + length + 4 * count
    if type(state) is not int or state < 0 or size != at + state + DIGEST:
        raise wrong(f"{path}", f"{at + DIGEST} bytes and the state's", f"{size} for a state of {brief(state)}")
    if state > (most := engine.state_limit(count)):
        raise wrong(f"{path}: bytes", f"at most {most} for {count} tokens", state)
    file = np.memmap(path, np.uint8, "r")
    if not np.array_equal(file[-DIGEST:], _digest(file)):
        raise InputError(f"{path}: the file is damaged: its checksum is another one")
    tokens: list[int] = file[at - 4 * count : at].view("<i4").tolist()
    if bad := [t for t in tokens if not 0 <= t < engine.vocab]:
        raise wrong(f"{path}: tokens", f"ids from 0 to {engine.vocab - 1}", bad[0])
    try:
        engine.restore(count, file[at:-DIGEST])
    except InputError as e:
        raise InputError(f"{path}: {e}") from None
    return tokens


def _digest(file: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of all but the place where it stands."""
    return np.frombuffer(hashlib.blake2b(file[:-DIGEST].data, digest_size=DIGEST).digest(), np.uint8)
