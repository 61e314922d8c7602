"""The one way to read a small file of a stranger: a regular file, up to a limit of its kind, in bounded memory."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

from .errors import InputError, brief, wrong
from .units import human

# Bytes by file name, several times what the field's largest have; other names: LIMIT.
LIMITS = {
    "tokenizer.json": 100_000_000,
    "vocab.json": 100_000_000,
    "merges.txt": 100_000_000,
    "manifest.json": 100_000_000,
    "model.safetensors.index.json": 100_000_000,
    "tokenizer.model": 6_000_000,
    "tokenizer_config.json": 5_000_000,  # 6,000 added tokens take 1; several readers parse it
    "chat_template.jinja": 1_000_000,
}
LIMIT = 10_000_000
MEMORY = 700_000_000  # bytes that a parsed JSON may take by the estimate below
DEPTH = 100  # of nested objects and lists
# What each of these bytes adds in CPython at most: an object, a list, a key's entry, a value with its place, a string.
COSTS = {b"{": 240, b"[": 100, b":": 220, b",": 60, b'"': 30}
NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def there(path: Path) -> bool:
    """Whether anything has that name, also a broken link: reading it then says what is wrong."""
    return os.path.lexists(path)


def size_of(path: Path) -> int:
    """Bytes of a regular file, without opening it; InputError for anything else under that name."""
    try:
        found = path.stat()
    except (OSError, ValueError) as e:
        raise _unreadable(path, e) from None
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise InputError(f"{path}: this is {kind}, not a regular file; put the file itself there")
    return found.st_size


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A whole regular file of at most `limit` bytes (default: that of its name); InputError for any other."""
    limit = LIMITS.get(path.name, LIMIT) if limit is None else limit
    if (size := size_of(path)) > limit:
        raise InputError(
            f"{path}: {human(size)} is more than the {human(limit)} that such a file may have; is it the right file?"
        )
    return read_start(path, limit)


def read_start(path: Path, length: int) -> bytes:
    """At most the first `length` bytes of a regular file."""
    size = size_of(path)
    try:
        with path.open("rb") as f:
            return f.read(min(length, size))
    except (OSError, ValueError) as e:
        raise _unreadable(path, e) from None


def read_text(path: Path, limit: int | None = None) -> str:
    """A whole UTF-8 file; InputError where it is not."""
    raw = read_bytes(path, limit)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: byte {e.start} is not UTF-8; save the file as UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError for anything else."""
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, dict):
        raise wrong(path, "a JSON object", type(value).__name__)
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The same, empty where there is no such file."""
    return read_json(path) if there(path) else {}


def parse_json(raw: bytes, where: object, pairs: Any = None) -> Any:
    """A JSON value in bounded memory; `where` names it in errors; `pairs` is json's object_pairs_hook."""
    text = bounded_json(raw, where)
    try:
        value = _loads(text, pairs)
        if SURROGATE.search(raw):  # half a pair, which is no character and could never be written again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:
        raise wrong(where, "JSON", brief(str(e))) from None
    return value


def _loads(text: str, pairs: Any) -> Any:
    """json.loads without the garbage collector, which looks for cycles again and again while millions of lists are
    made: 2.4 s against 0.6 s for 12 MB of them. Freeze and unfreeze move them past its next looks, too.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text, object_pairs_hook=pairs)
    finally:
        if collected:
            if not gc.get_freeze_count():  # what others froze stays so
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def bounded_json(raw: bytes, where: object) -> str:
    """The text of a JSON that any parser can read in bounded memory, without parsing it."""
    try:
        text = raw.decode("utf-8-sig")
    except ValueError as e:
        raise wrong(where, "JSON", brief(str(e))) from None
    memory = 2 * sys.getsizeof(text) + sum(cost * raw.count(mark) for mark, cost in COSTS.items())
    if memory > MEMORY:
        raise InputError(
            f"{where}: this JSON would take about {human(memory)} of memory, more than the {human(MEMORY)} "
            "that are allowed; is it the right file?"
        )
    if _too_deep(raw):
        raise InputError(f"{where}: this JSON is nested deeper than {DEPTH} levels; is it the right file?")
    return text


def _too_deep(raw: bytes) -> bool:
    """Whether the brackets outside of strings nest deeper than `DEPTH`; linear, without recursion."""
    rest = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, NO_BRACKETS)
    rest = re.sub(rb'"[^"]*"', b"", rest.replace(b'""', b""))
    if re.search(rb"[\[{]{%d}" % (DEPTH + 1), rest):
        return True
    for _ in range(DEPTH):
        rest = rest.replace(b"[]", b"").replace(b"{}", b"")
    # what does not balance is no JSON, which the parser says better
    return bool(rest) and rest.count(b"[") + rest.count(b"{") == rest.count(b"]") + rest.count(b"}")


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT and path.is_symlink():
        return InputError(f"{path}: a link to a file that does not exist; put the file itself there")
    if number == errno.ENOENT:
        return wrong(path, "a file", "none", "is the folder complete?")
    if number == errno.ELOOP:
        return InputError(f"{path}: a link that leads back to itself; put the file itself there")
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return InputError(f"{path}: cannot be read: {reason}")
