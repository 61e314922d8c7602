"""A stand-in for the adb server with its phones: the smart-socket protocol on the loopback, for Debian's adb client.

A phone is a folder (`sdcard`, `data`, `proc`). Its shell is mksh with toybox's commands, as Android's is; `pm` and
`getprop` are a line each. Only paths of the phone in the script's text are moved into the folder, so that all quoting
is read by a real shell. Protocol: OVERVIEW.TXT, SERVICES.TXT and the shell v2 packets in adb's sources.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

VERSION = b"0029"  # in hexadecimal, what the client compares with its own: 41
FEATURES = b"shell_v2,cmd,stat_v2"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
COMMANDS = ("cat", "ls", "mkdir", "mv", "rm", "sha256sum", "sleep", "stat", "sync", "test", "true")
APP = "/data/app/~~a1b2==/org.sampan.demo-c3d4=="
FILES = "/sdcard/Android/data/org.sampan.demo/files"
SECONDS = 60  # the longest that a connection may stay silent
GRACE = 2  # seconds that a script may go on when its client is gone


@dataclass
class Phone:
    """`cut`: the connection ends after so many bytes of standard input of a `cat`, once; `damage`: a bit differs.

    `lost`: the connection ends before such a script has said anything. `largest`: bytes that a file may have, as of a
    full disk; `free`: bytes that `stat -f` tells.
    """

    root: Path
    state: str = "device"
    abis: str = "arm64-v8a,armeabi-v7a"
    memory: int = 8 << 30
    available: int = 5 << 30
    free: int = 50 << 30
    features: str = "fp asimd asimddp"
    installed: bool = True
    cut: int | None = None
    damage: bool = False
    lost: str | None = None
    largest: int | None = None
    scripts: list[str] = field(default_factory=list)

    def make(self) -> None:
        """The folder, as a phone has it after the app was started once."""
        for place in (FILES, f"{APP}/lib/arm64", "/proc", "/bin"):
            (self.root / place[1:]).mkdir(parents=True, exist_ok=True)
        (self.root / "proc/meminfo").write_text(
            f"MemTotal:   {self.memory >> 10} kB\nMemFree:   1024 kB\nMemAvailable:   {self.available >> 10} kB\n"
        )
        (self.root / "proc/cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {self.features}\n")
        toybox = shutil.which("toybox")
        for name in COMMANDS:
            if toybox and not (self.root / "bin" / name).exists():
                (self.root / "bin" / name).symlink_to(toybox)
        told = f'[ "$1" = -f ] && echo {self.free >> 12} 4096 || exec {toybox} stat "$@"'
        path = f"echo package:{APP}/base.apk" if self.installed else "exit 1"
        for name, body in (("getprop", f"echo {self.abis}"), ("pm", path), ("stat", told)):
            (self.root / "bin" / name).unlink(missing_ok=True)
            (self.root / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.root / "bin" / name).chmod(0o755)

    def path(self, place: str) -> Path:
        return self.root / place[1:]

    def shell(self, script: str) -> subprocess.Popen[bytes]:
        self.make()
        self.scripts.append(script)
        here = re.sub(r"/(?=(sdcard|data/app|proc)/)", f"{self.root}/", script)
        limit = f"ulimit -f {self.largest // 512}; " if self.largest is not None else ""
        return subprocess.Popen(
            [shutil.which("mksh") or "mksh", "-c", limit + here],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": str(self.root / "bin")}, cwd=self.root, start_new_session=True,
        )  # fmt: skip


class Adb:
    """The server; a context manager. `environment` is what makes adb talk to it and to nothing else."""

    def __init__(self, phones: dict[str, Phone]) -> None:
        self.phones = phones
        self.requests: list[str] = []
        self._server = _Server(("127.0.0.1", 0), self)
        port = self._server.server_address[1]
        self.environment = {"ADB_SERVER_SOCKET": f"tcp:127.0.0.1:{port}", "ANDROID_ADB_SERVER_PORT": str(port)}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address = True, True

    def __init__(self, address: tuple[str, int], adb: Adb) -> None:
        self.adb = adb
        super().__init__(address, _Connection)


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Server

    def handle(self) -> None:
        self.request.settimeout(SECONDS)
        with contextlib.suppress(OSError, EOFError):
            phone: Phone | None = None
            while (asked := self._request()) is not None:
                self.server.adb.requests.append(asked)
                phone = self._answer(asked, phone)

    def _request(self) -> str | None:
        try:
            return self._exactly(int(self._exactly(4), 16)).decode()
        except EOFError:
            return None

    def _answer(self, asked: str, phone: Phone | None) -> Phone | None:
        phones = self.server.adb.phones
        if phone is not None:
            if not asked.startswith("shell,v2"):
                raise EOFError
            self.request.sendall(b"OKAY")
            if phone.lost and phone.lost in asked:
                raise EOFError
            self._shell(phone, asked.partition(":")[2])
            raise EOFError  # a service ends its connection
        if asked == "host:version":
            self._text(VERSION)
        elif asked == "host:devices":
            self._text("".join(f"{serial}\t{p.state}\n" for serial, p in phones.items()).encode())
        elif named := re.fullmatch(r"host(?:-serial:(.*))?:features", asked):
            if self._ready(named[1]):
                self._text(FEATURES)
        elif named := re.fullmatch(r"host:(tport:serial|transport):(.*)", asked):
            if found := self._ready(named[2]):
                self.request.sendall(b"OKAY" + (b"\1" + bytes(7) if named[1].startswith("tport") else b""))
                return found
        else:
            self._fail(f"unknown host service {asked!r}")
        raise EOFError  # an answer ends its connection, and the client waits for that

    def _ready(self, serial: str) -> Phone | None:
        found = self.server.adb.phones.get(serial)
        if found is None or found.state != "device":
            self._fail(f"device '{serial}' not found" if found is None else f"device {found.state}")
            return None
        return found

    def _text(self, text: bytes) -> None:
        self.request.sendall(b"OKAY" + b"%04x" % len(text) + text)

    def _fail(self, text: str) -> None:
        self.request.sendall(b"FAIL" + b"%04x" % len(text.encode()) + text.encode())

    def _shell(self, phone: Phone, script: str) -> None:
        process = phone.shell(script)
        lock = threading.Lock()

        def send(kind: int, data: bytes) -> None:
            with lock, contextlib.suppress(OSError):
                self.request.sendall(struct.pack("<BI", kind, len(data)) + data)

        def pass_on(kind: int, pipe: Any) -> None:
            while data := os.read(pipe.fileno(), 1 << 15):
                send(kind, data)

        readers = [
            threading.Thread(target=pass_on, args=(kind, pipe), daemon=True)
            for kind, pipe in ((STDOUT, process.stdout), (STDERR, process.stderr))
        ]

        def end() -> None:
            for reader in readers:
                reader.join()
            code = process.wait()
            send(EXIT, bytes([code if code >= 0 else 128 - code]))
            with contextlib.suppress(OSError):
                self.request.shutdown(socket.SHUT_RDWR)

        for thread in (*readers, threading.Thread(target=end, daemon=True)):
            thread.start()
        try:
            self._stdin(phone, process, script)
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _stdin(self, phone: Phone, process: subprocess.Popen[bytes], script: str) -> None:
        """Packets of standard input until the end; with the phone's faults where the script is the push's."""
        assert process.stdin is not None
        pushed, taken = script.startswith("cat >>"), 0
        while True:
            kind, length = struct.unpack("<BI", self._exactly(5))
            data = self._exactly(length)
            if kind == CLOSE_STDIN:
                process.stdin.close()
                continue
            if kind != STDIN:
                continue
            if pushed and phone.damage and data:
                data, phone.damage = bytes([data[0] ^ 1]) + data[1:], False
            cut = pushed and phone.cut is not None and taken + len(data) >= phone.cut
            if cut:
                data = data[: phone.cut - taken]
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(data)
                process.stdin.flush()
            taken += len(data)
            if cut:
                phone.cut = None
                self.request.shutdown(socket.SHUT_RDWR)
                raise EOFError

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            if not (part := self.request.recv(n - len(data))):
                raise EOFError
            data += part
        return data
