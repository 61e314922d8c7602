"""Command lines in forked children of one small process, with a limit of time and memory, and what each one took.

`run(argv)` for tests; as a script it is that process: JSON lines in, JSON lines out.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SECONDS, ADDRESSES = 20.0, 6 * 10**9  # of a child before it is ended; the second keeps the machine alive
LOOP, UNIT = 600_000, 0.054  # turns of a loop, and its seconds on an idle Xeon of 2.5 GHz (CPython 3.11)


@dataclass(frozen=True, slots=True)
class Result:
    """`code`: -9 for a child that had to be ended. `cpu`: seconds of the processor at `UNIT`; `peak`: bytes."""

    code: int
    out: str
    err: str
    cpu: float
    peak: int


@cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # ends with our end of the pipe


def run(*argv: str) -> Result:
    """`sampan ARGV`, watched."""
    server = _server()
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(argv) + "\n")
    server.stdin.flush()
    return Result(**json.loads(server.stdout.readline()))


def _serve() -> None:
    import onnx  # noqa: F401 - before the fork, so that no child pays for it

    import sampan.convert.conversion
    import sampan.hub
    import sampan.runtime.session
    import sampan.validate.validation  # noqa: F401

    for request in sys.stdin:
        before = _unit()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            pid = os.fork()
            if pid == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os._exit(_command(json.loads(request)))
            code, cpu, peak = _wait(pid)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read(1_000_000))
        seconds = cpu / max(1.0, (before + _unit()) / 2 / UNIT)
        print(json.dumps({"code": code, "out": texts[0], "err": texts[1], "cpu": seconds, "peak": peak}), flush=True)


def _unit() -> float:
    """Seconds of a processor that a fixed loop takes now: slow processors and shared cores take more for everything."""
    start, total = time.process_time(), 0
    for i in range(LOOP):
        total += i & 127
    return time.process_time() - start


def _command(argv: list[str]) -> int:
    from sampan.cli import main

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    sys.argv = ["sampan", *argv]
    try:
        main()
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _wait(pid: int) -> tuple[int, float, int]:
    end = time.monotonic() + SECONDS
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # the script's folder, where names of the tests' modules lie
    _serve()
