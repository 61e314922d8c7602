#!/usr/bin/env python3
"""A checkpoint converted while it comes from a hub, against the same conversion from a folder: memory, disk, time.

    python benchmarks/stream.py CHECKPOINT [--quant q4_k_m] [--kills 2] [--work FOLDER]

A hub on the loopback (tests/hub_server.py) serves the folder CHECKPOINT; the command runs as a user's does. It is
killed `--kills` times, each time after more of the checkpoint went over the line, and started again. The weights of
both outputs are compared. Disk is what the output's folder holds beside the finished output at the worst moment.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hub_server import Hub, Repository, sibling

from sampan.gguf import read_header

COMMAND = [sys.executable, "-c", "from sampan.cli import main; main()", "convert"]
NAME, COMMIT = "owner/model", "a" * 40
POLL = 0.02  # seconds between two looks


def held(folder: Path) -> int:
    """Bytes that a folder takes on the disk; holes take none."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:  # it was just deleted
            continue
    return total


def peak(pid: int) -> int:
    """VmHWM in bytes, 0 where the process is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def run(
    arguments: list[str], folder: Path, environment: dict[str, str], hub: Hub | None, limit: int
) -> tuple[int, int]:
    """(peak memory, most bytes on the disk) of one command, killed when `limit` bytes went over the line."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, env=environment)
    memory = disk = 0
    while process.poll() is None:
        memory, disk = max(memory, peak(process.pid)), max(disk, held(folder))
        if limit and hub and sum(r.sent for r in hub.requests) > limit:
            process.kill()
            process.wait()
            return memory, disk
        time.sleep(POLL)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)}: exit {process.returncode}")
    return memory, disk


def weights(path: Path) -> str:
    """SHA-256 of everything after the header."""
    with path.open("rb") as f:
        f.seek(read_header(path).data_start)
        return hashlib.file_digest(f, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--quant", default="q4_k_m")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder with room for the outputs (default: a temporary one)")
    options = parser.parse_args()
    shards = [f.stat().st_size for f in options.checkpoint.glob("*.safetensors")]
    for file in options.checkpoint.glob("*.safetensors"):
        sibling(file, file.name, blobs=True)  # hashed once, not while somebody waits
    print("| | seconds | peak memory | disk beside the output |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        found = []
        for name, source in (("folder", str(options.checkpoint)), ("stream", NAME)):
            folder = Path(temporary) / name
            folder.mkdir()
            out = folder / "model.gguf"
            arguments = [source, "--to", "gguf", "--quant", options.quant, "-o", str(out)]
            start, memory, disk = time.monotonic(), 0, 0
            if source == NAME:
                with Hub({NAME: Repository({COMMIT: options.checkpoint}, {"main": COMMIT})}) as hub:
                    environment = os.environ | {
                        "HF_ENDPOINT": hub.url, "HF_HOME": str(Path(temporary) / "home"), "HF_HUB_DISABLE_XET": "1",
                    }  # fmt: skip
                    for n in range(1, options.kills + 2):
                        limit = n * sum(shards) // (options.kills + 1) if n <= options.kills else 0
                        m, d = run([*arguments, "--stream"], folder, environment, hub, limit)
                        memory, disk = max(memory, m), max(disk, d)
                    sent = sum(r.sent for r in hub.requests)
            else:
                memory, disk = run(arguments, folder, dict(os.environ), None, 0)
            seconds = time.monotonic() - start
            beside = disk - held(folder)
            print(f"| {name} | {seconds:.1f} | {memory / 1e6:.0f} MB | {beside / 1e6:.1f} MB |", flush=True)
            found.append(weights(out))
    same = "the same" if found[0] == found[1] else "OTHER"
    print(f"\n{len(shards)} shards, the largest {max(shards) / 1e6:.0f} MB of {sum(shards) / 1e6:.0f} MB.")
    print(
        f"Killed {options.kills} times; {sent / sum(shards):.2f} of the checkpoint went over the line; {same} weights."
    )


if __name__ == "__main__":
    main()
