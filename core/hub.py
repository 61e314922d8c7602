"""Checkpoints from a hub: only the files that are needed, through huggingface_hub and in its cache.

HF_HOME, HF_ENDPOINT, HF_TOKEN and the other variables of that library are honoured by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from .chat_template import MORE, checked_names
from .checkpoint import (
    INDEX,
    SINGLE,
    Body,
    Checkpoint,
    ShardFile,
    assemble,
    file_reader,
    open_folder,
    read_weight_map,
)
from .errors import InputError, UnfinishedError, brief, wrong
from .files import LIMIT
from .safetensors import ReadAt
from .units import human

CARD = "README.md"
SMALL_FILES = (
    "generation_config.json",
    "hf_quant_config.json",
    "tiktoken.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    CARD,
)
RETRIES = 5  # in a row without a byte
PAUSE = 1.0  # seconds before the first of them, doubled each time
AGAIN = "; run again to continue"


def is_hub_id(source: str) -> bool:
    """`owner/name`, and not a folder here."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source)) and not Path(source).exists()


def open_source(
    source: str, revision: str | None = None, *, headers_only: bool = False, stream: bool = False
) -> Checkpoint:
    """A folder or a hub id → Checkpoint. `headers_only` fetches no weights (range requests); `stream` neither, but
    its shards have a `body`.
    """
    if Path(source).is_dir():
        if stream:
            raise wrong("--stream", "a hub id as SOURCE", f"the folder {source}")
        if revision is not None:
            raise wrong("--revision", "a hub id as SOURCE", f"the folder {source}")
        return open_folder(Path(source))
    if not is_hub_id(source):
        raise wrong(source, "a checkpoint folder or a hub id such as Qwen/Qwen3-0.6B", "neither")
    return _open_hub(source, revision, headers_only, stream)


@dataclass(frozen=True, slots=True)
class Repository:
    """What a hub lists of a commit: `sizes` of all files, `digests` (SHA-256) of large ones; errors name it `at`."""

    id: str
    at: str
    commit: str
    sizes: dict[str, int | None]
    digests: dict[str, str]

    def fetch(self, name: str) -> Path:
        """The file in the library's cache."""
        import huggingface_hub as hub

        with explained(f"{self.at}: {name}"):
            return Path(hub.hf_hub_download(self.id, name, revision=self.commit))

    def fetch_large(self, name: str, *, resumable: bool) -> Path:
        """The same for a file of the hub's large storage, which goes on where an earlier run was cut off."""
        import huggingface_hub as hub

        size, digest, storage = self.sizes[name], self.digests.get(name), cache_of(self.id)
        there = storage / "snapshots" / self.commit / name
        if resumable and size and digest and re.fullmatch("[0-9a-f]{64}", digest) and not there.exists():
            with explained(f"{self.at}: {name}"):
                _download(hub.hf_hub_url(self.id, name, revision=self.commit), storage, digest, size)
        return self.fetch(name)


def cache_of(repo: str) -> Path:
    """Where the library keeps what it fetched of a repository."""
    from huggingface_hub import constants, file_download

    return Path(constants.HF_HUB_CACHE, file_download.repo_folder_name(repo_id=repo, repo_type="model"))


def open_repository(repo: str, revision: str | None) -> Repository:
    """Ask a hub what it has. Raises InputError in a line that says what to do."""
    import huggingface_hub as hub

    if not os.environ.keys() & {"HF_HUB_VERBOSITY", "HF_DEBUG"}:
        hub.logging.set_verbosity_error()  # its warnings about retries and tokens would stand beside our one line
    at = f"{repo}@{revision}" if revision else repo
    with explained(at):
        timeout = hub.constants.HF_HUB_ETAG_TIMEOUT
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    files = info.siblings or []
    digests = {s.rfilename: s.lfs.sha256 for s in files if s.lfs}
    return Repository(repo, at, info.sha, {s.rfilename: s.size for s in files}, digests)


def _open_hub(repo: str, revision: str | None, headers_only: bool, stream: bool) -> Checkpoint:
    import huggingface_hub as hub

    repository = open_repository(repo, revision)
    at, commit, sizes, digests = repository.at, repository.commit, repository.sizes, repository.digests
    fetch = repository.fetch
    if "config.json" not in sizes:
        found, hint = _weights_elsewhere(sizes) or ("none", "is this a model repository?")
        raise wrong(at, "a config.json", found, hint)
    folder = fetch("config.json").parent
    if INDEX not in sizes and SINGLE not in sizes:
        pickle = any(n.endswith((".bin", ".pt", ".pth")) for n in sizes)
        found, hint = ("neither", "") if pickle else (_weights_elsewhere(sizes) or ("neither", ""))
        raise wrong(at, f"{SINGLE} or {INDEX}", "only pickles, which are never opened" if pickle else found, hint)
    large = (sizes.get(CARD) or 0) > LIMIT  # a decoration, of which the first bytes are read
    for name in SMALL_FILES:
        if name in sizes and not (name == CARD and large):
            fetch(name)
    for name in checked_names(at, [n for n in sizes if re.fullmatch(rf"{MORE}/[^/]+\.jinja", n)]):
        fetch(name)
    if INDEX in sizes and SINGLE not in sizes:
        shards = sorted(set(read_weight_map(fetch(INDEX)).values()))
        missing = next((s for s in shards if s not in sizes), None)
        if missing:
            raise wrong(f"{at}: {INDEX}", f"the shard {missing} in the repository", "no such file")

    def locate(name: str) -> ShardFile:
        size, digest = sizes[name], digests.get(name)
        url = hub.hf_hub_url(repo, name, revision=commit)
        if headers_only or stream:
            if size is None:
                raise wrong(f"{at}: {name}", "a size from the hub", "none")
            if stream and digest is None:
                raise wrong(f"{at}: {name}", "a SHA-256 from the hub, for --stream", "none")
            body = _body(Remote(url, f"{at}: {name}", size, digest))
            return ShardFile(None, size, _range_reader(body, size), digest, body)
        linked = (folder / "config.json").is_symlink()  # where links do not work, the library moves what it fetched
        path = repository.fetch_large(name, resumable=linked)
        return ShardFile(path, path.stat().st_size, file_reader(path), digest)

    checkpoint = assemble(folder, repo, commit, locate, sizes)
    note = f"the model card is left out: {CARD} has {human(sizes[CARD] or 0)}" if large else ""
    return replace(checkpoint, notes=(*checkpoint.notes, note)) if note else checkpoint


def _weights_elsewhere(names: Collection[str]) -> tuple[str, str] | None:
    """What a repository has that can be run and not converted, and how it is named."""
    checkpoint = {SINGLE, INDEX} & set(names)
    first = next((n for n in sorted(names) if n.endswith((".gguf", ".onnx")) and not checkpoint), None)
    kind = "GGUF files" if first and first.endswith(".gguf") else "ONNX graphs"
    return (kind, f"`sampan run` takes them, as REPOSITORY:{first}") if first else None


def _download(url: str, storage: Path, digest: str, size: int) -> None:
    """Put a large file where huggingface_hub's cache keeps it, going on where an earlier run was cut off.

    That library continues a file within one run only and then deletes it (its issue 4196), which can cost
    gigabytes. Files that come through Xet are left to it.
    """
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blob = storage / "blobs" / digest
    part = blob.with_name(f"{digest}.incomplete")
    lock = storage.parent / ".locks" / storage.name / f"{digest}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # from another revision, or its link was deleted because it is damaged
            with blob.open("rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() == digest:
                    return
            blob.unlink()
        if get_hf_file_metadata(url).xet_file_data is not None and not constants.HF_HUB_DISABLE_XET:
            return
        with part.open("ab") as f:
            if f.tell() > size:  # two runs wrote it at once, on a disk where locks do not hold
                f.seek(0)
                f.truncate()
            http_get(url, f, resume_size=f.tell(), headers=build_hf_headers(), expected_size=size)
        part.replace(blob)


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of a hub: `where` names it in errors; `size` and `digest` (SHA-256) are what the hub lists."""

    url: str
    where: str
    size: int
    digest: str | None


def _range_reader(body: Body, size: int) -> ReadAt:
    """Reads of a remote file; the first 256 KiB come in one request and usually hold the whole header."""
    head = b""

    def read(offset: int, length: int) -> bytes:
        nonlocal head
        end = min(size, offset + length)
        if end > len(head):
            head = b"".join(body(0, min(size, max(end, 1 << 18))))
        return head[offset:end]

    return read


def _body(remote: Remote) -> Body:
    """Reads that go on behind a dropped connection, with growing pauses while nothing comes."""

    def body(start: int, stop: int) -> Iterator[bytes]:
        position, failures = start, 0
        while position < stop:
            try:
                for piece in _get(remote, position, stop):
                    position, failures = position + len(piece), 0
                    yield piece
            except InputError:
                raise
            except Exception as e:
                if failures == RETRIES or not _may_pass(e):
                    _give_up(remote.where, e)
                time.sleep(PAUSE * 2**failures)
                failures += 1

    return body


def _get(remote: Remote, start: int, stop: int) -> Iterator[bytes]:
    """One range request, its answer checked; raises what the library raises when the body ends too early."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", remote.url, headers=headers, timeout=timeout) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != 206:  # not read: it would be the whole file
            raise wrong(remote.where, "an answer to a range request (206)", answer.status_code)
        expected, found = f"bytes {start}-{stop - 1}/{remote.size}", answer.headers.get("Content-Range", "none")
        if found != expected:
            raise wrong(remote.where, f"Content-Range {expected}", brief(found), "did the repository change?")
        for r in (*answer.history, answer):
            listed = r.headers.get("X-Linked-Etag", "").strip('"')
            if listed and remote.digest and listed != remote.digest:
                raise wrong(remote.where, f"SHA-256 {remote.digest} as the hub lists", brief(listed), "it changed")
        left = stop - start
        for piece in answer.iter_raw():
            if len(piece) > left:
                raise wrong(remote.where, f"{stop - start} bytes in the answer", "more")
            left -= len(piece)
            yield piece
        if left:
            raise HTTPError("the answer ended too early")


def _may_pass(e: Exception) -> bool:
    """Whether asking again may help: connections, overloaded servers; not refusals."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(e, HfHubHTTPError):
        return e.response.status_code in (408, 429) or e.response.status_code >= 500
    return isinstance(e, HTTPError | OSError)


def _give_up(where: str, error: Exception) -> NoReturn:
    try:
        with explained(where):
            raise error
    except InputError as e:
        line = str(e)
    raise UnfinishedError(line + AGAIN if _may_pass(error) and not line.endswith(AGAIN) else line) from None


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what the hub library raises into one line that says what to do next; `where` names repository and file."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError:
        raise InputError(
            f"{where}: this repository is gated: ask for access on its page, then set HF_TOKEN to a token "
            "that has it, or run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise wrong(where, "an existing branch, tag or commit", "none of that name") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{where}: no such repository, or a private one without access: check the name; for a private "
            "repository set HF_TOKEN or run `hf auth login`"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise wrong(where, "the file that the repository lists", "none (404)") from None
    except errors.HfHubHTTPError as e:
        said = e.server_message or e.response.reason_phrase
        hint = "; check HF_TOKEN or run `hf auth login`" if e.response.status_code == 401 else ""
        raise InputError(f"{where}: the hub answered {e.response.status_code}: {_line(said)}{hint}") from None
    except errors.OfflineModeIsEnabled:
        raise InputError(f"{where}: HF_HUB_OFFLINE is set: unset it, or give a folder as SOURCE") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as e:
        raise InputError(
            f"{where}: the connection to {constants.ENDPOINT} failed: {_line(e.__cause__ or e)}{AGAIN}"
        ) from None
    except errors.HFValidationError as e:
        raise InputError(f"{where}: not a hub id: {_line(e)}") from None
    except (json.JSONDecodeError, KeyError):
        raise wrong(
            f"{where}: {constants.ENDPOINT}", "a hub's JSON", "something else", "is HF_ENDPOINT right?"
        ) from None
    except OSError as e:
        raise InputError(f"{where}: the download failed: {_line(e)}") from None


def _line(message: object) -> str:
    """A message of another program as one line."""
    return brief(" ".join(str(message).split()), 300)
