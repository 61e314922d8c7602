"""What a user names as a model, and the artifact that is meant: a path, a folder or a hub id with one of several.

`owner/name:Q4_K_M` is the form of llama.cpp and ollama; `onnx/model_q4.onnx` the layout of transformers.js, whose names
of types stand behind the colon too (https://huggingface.co/docs/transformers.js/guides/dtypes).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .artifact import write_atomically
from .errors import InputError, brief, wrong
from .files import read_start
from .onnx import GRAPH, home
from .static import is_static
from .units import human

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
GRAPHS = re.compile(r"(?:decoder_)?model(?:_merged)?(?:_([\w-]+))?\.onnx")
DATA = re.compile(r"(\.data|_data(_\d+)?)")  # behind a graph's name
BESIDE = ("mmproj", "imatrix")  # GGUF files that are no models
SPELLED = {"": "fp32", "quantized": "q8"}  # transformers.js's name of a type where it is not in the file's
MORE_FILES = ("config.json", "genai_config.json", "manifest.json")  # beside those of a checkpoint
DEPTH = 2  # of folders in a folder that are looked into
LISTED = 12  # names in an error
MOST = 10_000  # files of a folder


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the models that lie together: `file` is what is opened, `files` all that hold its weights.

    Names are relative; `tags` are what can stand behind the colon, in lower case.
    """

    file: str
    files: tuple[str, ...]
    tags: frozenset[str]

    def means(self, tag: str) -> bool:
        """Whether a tag names it: the file itself, one of `tags`, or for a GGUF file what its name ends with."""
        path, tag = PurePosixPath(self.file), tag.lower()
        if tag in (self.file.lower(), path.name.lower()) or tag in self.tags:
            return True
        return path.suffix == ".gguf" and any(t.endswith((f"-{tag}", f".{tag}")) for t in self.tags)


def find_model(
    model: str | os.PathLike[str], revision: str | None = None, say: Callable[[str], None] | None = None
) -> Path:
    """The GGUF file (of a split one the first part), the ONNX folder or the ONNX graph that is meant.

    What is not here and reads as a hub id is fetched into huggingface_hub's cache; `say` gets a line with its size
    before. Raises InputError where nothing or more than one thing of the name is there.
    """
    name = os.fspath(model)
    path = Path(name)
    if path.is_dir():
        return path if is_static(path) else _in_folder(path, "")
    if os.path.lexists(path):
        return path.parent if path.name == GRAPH and home(path) == path.parent else path
    base, _, tag = name.rpartition(":") if ":" in name else (name, "", "")
    if base and Path(base).is_dir():
        return _in_folder(Path(base), tag)
    if base and _is_hub_id(base):
        return _in_hub(base, tag, revision, say or (lambda line: None))
    return path


def names_model(source: str) -> bool:
    """Whether that is a model to be run, and not a checkpoint: a file, a folder with a graph or a GGUF file and no
    weights of a checkpoint, or a name with a colon.
    """
    path = Path(source)
    if path.is_dir():
        weights = ("model.safetensors", "model.safetensors.index.json")
        return not any(os.path.lexists(path / w) for w in weights) and bool(variants(_names(path)))
    return os.path.lexists(path) or ":" in source


def variants(names: Iterable[str]) -> list[Variant]:
    """The models among the files of a folder or a repository, by name."""
    known = sorted(n for n in names if _plain(n))
    found = []
    for name in known:
        path = PurePosixPath(name)
        folders = {part.lower() for part in path.parts[:-1]} - {"onnx"}
        if path.suffix == ".gguf" and not path.name.lower().startswith(BESIDE):
            split = SPLIT.fullmatch(name)
            if split and int(split[2]) != 1:
                continue
            parts = [f"{split[1]}-{n:05d}-of-{split[3]}.gguf" for n in _parts(split[3])] if split else [name]
            stem = PurePosixPath(split[1]).name if split else path.stem
            found.append(Variant(name, tuple(parts), frozenset({stem.lower(), *folders})))
        elif graph := GRAPHS.fullmatch(path.name):
            data = [n for n in known if n.startswith(name) and DATA.fullmatch(n.removeprefix(name))]
            kind = (graph[1] or "").lower()
            found.append(Variant(name, (name, *data), frozenset({kind, SPELLED.get(kind, kind), *folders} - {""})))
    return found


def _parts(count: str) -> range:
    return range(1, min(int(count), MOST) + 1)


def _plain(name: str) -> bool:
    """Whether a name can only mean a file below its folder."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not any(p in ("", ".", "..") for p in parts)


def choose(where: str, names: Iterable[str], tag: str) -> Variant:
    """The one model of a tag; without a tag the only one. `where` names folder or repository in errors."""
    names = list(names)
    found = variants(names)
    meant = [v for v in found if not tag or v.means(tag)]
    if not meant:
        listed = _listed(v.file for v in found) if found else "none"
        raise wrong(where, f"a GGUF file or an ONNX graph {brief(tag)}".rstrip(), listed)
    if len(meant) > 1:
        hint = f"name one, as in {where}:{PurePosixPath(meant[0].file).name}"
        raise wrong(where, f"one model {brief(tag)}".rstrip(), _listed(v.file for v in meant), hint)
    if missing := next((n for n in meant[0].files if n not in set(names)), None):
        raise wrong(where, f"all {len(meant[0].files)} parts of {meant[0].file}", f"no {missing}")
    return meant[0]


def _listed(files: Iterable[str]) -> str:
    shown = sorted(files)
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
    return ", ".join(brief(f) for f in shown[:LISTED]) + more


def _in_folder(folder: Path, tag: str) -> Path:
    if not tag and (folder / GRAPH).is_file():
        return folder
    names = list(_names(folder))
    if not tag and not variants(names):
        return folder
    file = choose(str(folder), names, tag).file
    return folder if file == GRAPH else folder / file


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder and of those below it, links to folders left out."""
    count = 0
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(folder)
        if len(below.parts) >= DEPTH:
            folders.clear()
        for name in files:
            if (count := count + 1) > MOST:
                raise InputError(f"{folder}: more than {MOST} files lie there; name the model's own file")
            yield (below / name).as_posix()


def _is_hub_id(base: str) -> bool:
    """Whether that is to be looked for on a hub: not what is a path with a mistake in it."""
    from .hub import is_hub_id

    return is_hub_id(base) and not base.endswith((".gguf", ".onnx")) and not Path(base).parent.is_dir()


def _in_hub(repo: str, tag: str, revision: str | None, say: Callable[[str], None]) -> Path:
    from huggingface_hub import constants

    from .hub import CARD, SMALL_FILES, cache_of, open_repository

    if constants.HF_HUB_OFFLINE:
        return _in_cache(repo, tag, revision, cache_of(repo))
    repository = open_repository(repo, revision)
    sizes = repository.sizes
    chosen = choose(repository.at, sizes, tag)
    folder = cache_of(repo) / "snapshots" / repository.commit
    new = [n for n in chosen.files if not (folder / n).exists()]
    if new:
        say(f"{repository.at}: fetching {chosen.file}, {human(sum(sizes[n] or 0 for n in chosen.files))}")
    if chosen.file.endswith(".onnx"):
        places = list(PurePosixPath(chosen.file).parents)[:2]
        wanted = {(p / n).as_posix() for p in places for n in (*SMALL_FILES, *MORE_FILES)}
        for name in sorted(wanted & sizes.keys() - {CARD}):
            repository.fetch(name)
    links = _links()
    for name in chosen.files:
        path = repository.fetch_large(name, resumable=links)
        digest = repository.digests.get(name)
        if name in new and digest:
            with path.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
            if found != digest:
                path.resolve().unlink()
                path.unlink(missing_ok=True)
                raise wrong(f"{repository.at}: {name}", f"SHA-256 {digest} as the hub lists", found, "run again")
    _remember(folder.parents[1], revision or "main", repository.commit)
    return _in_folder(folder, chosen.file)


def _remember(storage: Path, revision: str, commit: str) -> None:
    """Note which commit a branch was, as the library does, for those who are offline later."""
    ref = storage / "refs" / revision
    if _plain(revision) and revision != commit and not (ref.is_file() and read_start(ref, 100) == commit.encode()):
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ref, commit.encode())


def _links() -> bool:
    """Whether the cache can hold links, as the library's own layout needs."""
    from huggingface_hub import file_download

    return bool(file_download.are_symlinks_supported())


def _in_cache(repo: str, tag: str, revision: str | None, storage: Path) -> Path:
    """What was fetched before, where HF_HUB_OFFLINE is set."""
    at = f"{repo}@{revision}" if revision else repo
    commit = revision or "main"
    ref = storage / "refs" / commit
    if _plain(commit) and ref.is_file():
        commit = read_start(ref, 100).decode(errors="replace")
    folder = storage / "snapshots" / commit
    if not re.fullmatch("[0-9a-f]{40}", commit) or not folder.is_dir():
        raise InputError(f"{at}: HF_HUB_OFFLINE is set, and the cache has nothing of it: unset it, or give a path")
    return _in_folder(folder, choose(f"{at} (HF_HUB_OFFLINE is set)", _names(folder), tag).file)
