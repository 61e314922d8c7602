"""A small Hugging Face hub on the loopback: what huggingface_hub and our range requests need of its API.

It answers as huggingface.co does: `/api/models/…` lists the files; `/owner/name/resolve/…` sends small files
itself and redirects weights to a storage on another origin, which must never see a token. Every request is
recorded, and faults can be planted.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import re
import socket
import struct
import termios
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

CHUNK = 1 << 16
SOCKET_SECONDS = 20  # the longest that a connection may stay silent

API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
STORAGE = re.compile(r"/storage/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)")


@dataclass
class Repository:
    """`commits`: sha → folder; `refs`: branch or tag → sha, `main` among them; `members`: tokens with access.

    The folders do not change while they are served.
    """

    commits: dict[str, Path]
    refs: dict[str, str]
    private: bool = False
    gated: bool = False
    members: frozenset[str] = frozenset()

    def commit(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Faults:
    """What goes wrong, by file name.

    `cut`: (bytes, how) for the first GET of the file alone: after that many bytes the connection is closed,
    reset or left silent. `drops`: the same at bytes of the file, each for the first answer that comes to it.
    `refused`: (n, status): that status after n answers with a part of the file. `missing`: listed, but 404.
    `damaged`: one bit differs from what was listed. `silent`: nothing is ever answered. `whole`: range requests are
    answered with the whole file.
    """

    cut: dict[str, tuple[int, str]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    drops: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    refused: dict[str, tuple[int, int]] = field(default_factory=dict)
    silent: bool = False
    whole: bool = False


@dataclass
class Request:
    """One request as it came; `file` is empty for the API; `sent` counts the bytes of the body."""

    method: str
    path: str
    headers: dict[str, str]
    storage: bool
    file: str = ""
    status: int = 0
    sent: int = 0


class Hub:
    """The server; a context manager. `url` is what HF_ENDPOINT is set to, `requests` the record."""

    def __init__(self, repositories: dict[str, Repository], tokens: frozenset[str] = frozenset()) -> None:
        self.repositories, self.tokens = repositories, tokens
        self.faults = Faults()
        self.requests: list[Request] = []
        self.stalled = threading.Event()  # set when a connection was left silent on purpose
        self.stopped = threading.Event()
        self._servers = [_Server(("127.0.0.1", 0), self, storage) for storage in (False, True)]
        self.url, self.storage_url = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def of(self, file: str) -> list[Request]:
        """The requests for one file of any repository."""
        return [r for r in self.requests if r.file == file]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub: Hub, storage: bool) -> None:
        super().__init__(address, _Handler)
        self.hub, self.storage = hub, storage

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away (it was killed, or read enough) is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_SECONDS
    disable_nagle_algorithm = True  # else a body waits 40 ms for the answer to its headers

    def log_message(self, format: str, *args: object) -> None:
        """The record is kept in `Hub.requests`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.request_ = Request(self.command, self.path, headers, self.server.storage)
        hub.requests.append(self.request_)
        if hub.faults.silent:
            hub.stopped.wait(SOCKET_SECONDS)
            self.close_connection = True
            return
        path = urlsplit(self.path).path
        if self.server.storage and (m := STORAGE.fullmatch(path)):
            self._content(hub.repositories[m[1]].commits[m[2]] / unquote(m[3]), {})
        elif not self.server.storage and (m := API.fullmatch(path)):
            self._api(m[1], unquote(m[2] or "main"))
        elif not self.server.storage and (m := RESOLVE.fullmatch(path)):
            self._resolve(m[1], unquote(m[2]), unquote(m[3]))
        else:
            self._refuse(404, "", "Not Found")

    def _repository(self, name: str) -> Repository | None:
        """The repository, or None when the refusal has been sent."""
        hub, token = self.server.hub, self._token()
        if token and token not in hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and token not in repository.members):
            # a stranger is not told which of the two it is
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _api(self, name: str, revision: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        if (commit := repository.commit(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        folder = repository.commits[commit]
        blobs = "true" in [v.lower() for v in parse_qs(urlsplit(self.path).query).get("blobs", [])]
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        answer = {
            "id": name, "modelId": name, "sha": commit, "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "siblings": [sibling(p, p.relative_to(folder).as_posix(), blobs) for p in files],
        }  # fmt: skip
        # what huggingface.co tells everyone without a token
        warning = {} if self._token() else {"X-HF-Warning": "unauthenticated; Please set a HF_TOKEN."}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"} | warning)

    def _resolve(self, name: str, revision: str, file: str) -> None:
        self.request_.file = file
        if (repository := self._repository(name)) is None:
            return
        if repository.gated and self._token() not in repository.members:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            self._refuse(403 if self._token() else 401, "GatedRepo", message)
            return
        if (commit := repository.commit(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        path = repository.commits[commit] / file
        if file in self.server.hub.faults.missing or not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit}
        if not _large(path):
            self._content(path, headers | {"ETag": f'"{_git_id(path)}"'})
            return
        where = f"{self.server.hub.storage_url}/storage/{name}/{commit}/{quote(file)}"
        size = str(path.stat().st_size)
        headers |= {"X-Linked-Size": size, "X-Linked-Etag": f'"{_sha256(path)}"', "Location": where}
        self._send(302, b"Found. Redirecting", headers)

    def _content(self, path: Path, headers: dict[str, str]) -> None:
        """A file or a range of it."""
        faults, name = self.server.hub.faults, path.name
        self.request_.file = self.request_.file or name
        data = path.read_bytes()
        if name in faults.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or faults.whole:
            self._send(200, data, headers, name)
            return
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
        if start >= stop:
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        after, status = faults.refused.get(name, (0, 0))
        if status and sum(r.status == 206 for r in self.server.hub.of(name)) >= after:
            self._refuse(status, "", "not now")
            return
        headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        drop = next((d for d in faults.drops.get(name, []) if start <= d[0] < stop), None)
        if drop:
            faults.drops[name].remove(drop)
            faults.cut[name] = drop[0] - start, drop[1]
        self._send(206, data[start:stop], headers, name)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "X-Request-Id": "Root=1-test", "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message}).encode(), headers | ({"X-Error-Code": code} if code else {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str], file: str = "") -> None:
        self.request_.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit, how = self.server.hub.faults.cut.pop(file, (len(body), ""))
        for start in range(0, limit, CHUNK):
            part = body[start : min(start + CHUNK, limit)]
            self.wfile.write(part)
            self.request_.sent += len(part)
        if how:
            self._cut(how)

    def _cut(self, how: str) -> None:
        self.close_connection = True
        if how == "silent":
            self.server.hub.stalled.set()
            self.server.hub.stopped.wait(SOCKET_SECONDS)
        elif how == "reset":
            while struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)))[0]:
                self.server.hub.stopped.wait(0.01)  # a reset throws away what was not sent yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def sibling(path: Path, name: str, blobs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name}
    if blobs:
        size = path.stat().st_size
        entry |= {"size": size, "blobId": _git_id(path)}
        if _large(path):
            entry["lfs"] = {"sha256": _sha256(path), "size": size, "pointerSize": 134}
    return entry


def _large(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".onnx", ".gguf") or path.name.endswith(".onnx_data")


@functools.cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _git_id(path: Path) -> str:
    """The id that git gives to a file; the hub's ETag of one outside LFS."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
