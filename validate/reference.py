"""What the candidates are compared with: a checkpoint, run as an exact artifact of itself, or an artifact."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sampan.artifact import manifest_path
from sampan.checkpoint import Checkpoint
from sampan.convert.conversion import Conversion, convert, prepare
from sampan.files import size_of, there
from sampan.hub import open_source
from sampan.model import find_model, names_model

Bars = Callable[[int, str, str], AbstractContextManager[Callable[[int], None]]]
"""`bars(total, what, unit)`: a progress bar, called with the amount done since the last call."""

HEADROOM = 10**9  # bytes that two loaded models need beside their weights
SMALL_FILES = (
    "config.json", "tiktoken.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "tokenizer_config.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reference:
    """`artifact` is what runs; `checkpoint` is None where the reference is an artifact itself."""

    artifact: Path
    checkpoint: Checkpoint | None


def cache_folder() -> Path:
    """Where reference artifacts are kept; safe to delete."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sampan" / "reference"


def find_reference(source: str, revision: str | None, beside: int, bars: Bars) -> Reference:
    """Open a reference. `beside`: bytes of the largest model that will be in memory with it."""
    if names_model(source):
        return Reference(find_model(source, revision), None)
    checkpoint = open_source(source, revision)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    exact = prepare(checkpoint, folder / "plan.gguf", "gguf", "f32", mtp=False)
    quant = "f32" if fits(exact.plan.nbytes + beside) else "bf16"
    out = folder / f"{_key(checkpoint, bars)}-{quant}.gguf"
    if not manifest_path(out).exists():
        _make(prepare(checkpoint, out, "gguf", quant, mtp=False), bars)
    return Reference(out, checkpoint)


def fits(nbytes: int) -> bool:
    """Whether models of that size can be loaded together now."""
    return nbytes + HEADROOM <= available_memory()


def available_memory() -> int:
    """Bytes of memory that can be had without swapping; all of it where the system does not say."""
    try:
        with Path("/proc/meminfo").open() as f:
            lines = dict(line.split(":", 1) for line in f)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _make(conversion: Conversion, bars: Bars) -> None:
    with bars(conversion.source_bytes, "preparing the reference", "B") as progress:
        convert(conversion, overwrite=True, progress=progress)


def _key(checkpoint: Checkpoint, bars: Bars) -> str:
    """A name by content: every weight and every small file that the conversion reads."""
    key = hashlib.sha256(version("sampan").encode())
    with bars(sum(s.size for s in checkpoint.shards), "hashing the checkpoint", "B") as progress:
        for shard in checkpoint.shards:
            assert shard.path is not None  # noqa: S101 - only a plan is made without files
            with shard.path.open("rb") as f:
                digest = hashlib.sha256()
                while block := f.read(1 << 22):
                    digest.update(block)
                    progress(len(block))
            key.update(f"{shard.name} {digest.hexdigest()}\n".encode())
    for name in SMALL_FILES:
        path = checkpoint.folder / name
        if there(path):
            size_of(path)  # a regular file, of any size
            with path.open("rb") as f:
                key.update(f"{name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return key.hexdigest()[:24]
