"""What an artifact is on the disk: its files, its manifest, and what may be replaced by a new one.

Only what we made is ever removed: a file is ours if a manifest of ours names it.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, brief, wrong
from .files import LIMITS, bounded_json, read_bytes

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of an artifact: its final path, its first bytes, its whole size.

    `folder`: the artifact is the folder that holds the file.
    """

    path: Path
    header: bytes
    size: int
    folder: bool = False


def manifest_path(out: Path) -> Path:
    """`model.gguf` → `model.gguf.manifest.json`; a folder holds its own `manifest.json`."""
    return out / MANIFEST if out.is_dir() else manifest_beside(out)


def manifest_beside(out: Path) -> Path:
    """Where the manifest of an output that is no folder lies."""
    return out.with_name(f"{out.name}.{MANIFEST}")


def manifest_bytes(data: dict[str, Any]) -> bytes:
    """A manifest as JSON: a line for each key, and for each entry of a section."""
    parts = []
    for key, value in data.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict) and value:
            entries = (f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            text = "{\n" + ",\n".join(entries) + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()


def own_files(manifest: Path) -> dict[str, int] | None:
    """Name → bytes of the files that a manifest of ours names; None where it is not one of ours."""
    try:
        data = json.loads(bounded_json(read_bytes(manifest, LIMITS[MANIFEST]), manifest))
    except (InputError, ValueError):
        return None
    files = data.get("files") if isinstance(data, dict) and isinstance(data.get("sampan"), str) else None
    if not isinstance(files, dict):
        return None
    plain = all(Path(name).name == name and type(size) is int for name, size in files.items())
    return files if plain else None


def replaced(out: Path, files: tuple[OutputFile, ...], overwrite: bool) -> list[str]:
    """What goes when an output gets its name: of a folder, all that it holds; else files of an older artifact of that
    name that the new one does not have, such as parts of another split.

    Raises InputError where something stands in the way: with `overwrite`, what is not of an artifact of ours.
    """
    return _replaced_folder(out, overwrite) if files[0].folder else _replaced_files(out, files, overwrite)


def _replaced_folder(out: Path, overwrite: bool) -> list[str]:
    if out.is_symlink():
        raise InputError(f"{out} is a link, and the finished folder takes its place: name the folder itself")
    if out.exists() and not out.is_dir():
        raise wrong(out, "a folder name for the output", "a file")
    if out.is_dir() and os.path.ismount(out):
        raise InputError(f"{out} is a mount point, which no finished folder can replace: name a folder inside it")
    found = sorted(out.iterdir()) if out.is_dir() else []
    if not found:
        return []
    ours = own_files(out / MANIFEST)
    if ours is None:
        raise wrong(out, "a new folder name", "a folder with other files in it")
    if not overwrite:
        raise wrong(out, "a new folder name", "an existing artifact", "use --overwrite to replace it")
    for path in found:
        if path.name not in {MANIFEST, *ours} or not (path.is_file() or path.is_symlink()):
            raise InputError(
                f"{out}: --overwrite would replace that artifact, but {brief(path.name)} in its folder is no part of "
                "it: move it away, or choose another name for the output"
            )
    return [path.name for path in found]


def _replaced_files(out: Path, files: tuple[OutputFile, ...], overwrite: bool) -> list[str]:
    new = [file.path for file in files]
    manifest = manifest_beside(out)
    named = own_files(manifest)
    if os.path.lexists(manifest) and named is None:
        raise InputError(
            f"{manifest}: the output's manifest would take the place of a file that is no manifest of ours: "
            "move it away, or choose another name for the output"
        )
    # A manifest may come from a stranger: of what it names, only what carries the output's own name counts.
    older = [out.with_name(name) for name in named or {} if name.startswith(out.stem)]
    for path in [*new, *older]:
        if path.is_dir():
            raise wrong(path, "a file name for the output", "a folder")
        if path.exists() and not path.is_file():  # of root's even /dev/null would be replaced
            raise wrong(path, "a file name for the output", "a device or a pipe")
        if os.path.lexists(path) and not overwrite:
            raise wrong(path, "a new file name", "an existing file", "use --overwrite to replace it")
    orphans = [path for path in older if path not in new and os.path.lexists(path)]
    for path in orphans:
        status, size = path.lstat(), (named or {})[path.name]
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise InputError(
                f"{path}: {manifest.name} names a file of {size} bytes there, which --overwrite would remove, and this "
                "is another one: move it away"
            )
    return [path.name for path in orphans]


def write_durably(path: Path, data: bytes, flags: int = os.O_TRUNC) -> None:
    """A file with these bytes, on the disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes) -> None:
    """A small file, complete or not there; an OSError names it, also where the disk is full."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_durably(part, data, os.O_EXCL)
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        e.filename = str(path)
        raise
