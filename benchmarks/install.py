"""What an install of sampan costs, by extra: MB on disk, seconds, and seconds of the processor.

python benchmarks/install.py --wheels FOLDER   # in new environments of this Python
python benchmarks/install.py --arm             # aarch64's wheels, unpacked here, after `make test-arm`: MB alone count

Downloads are part of the seconds. FOLDER holds llama-cpp-python's wheel; without it, compiling is part of them, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "arm"))
import machine  # noqa: E402

EXTRAS = ("", "onnx", "gguf", "server", "gguf,onnx,server", "reference")


def megabytes(folder: Path) -> float:
    return sum(p.lstat().st_blocks * 512 for p in folder.rglob("*")) / 1e6


def install(folder: Path, wheel: Path, extra: str, options: Sequence[str | Path], arm: bool) -> str:
    """Install into a folder that does not exist yet; the line to print."""
    if arm:
        python, options = Path(sys.executable), (*options, *machine.for_guest(), "--target", folder)
        before = 0.0
    else:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python, before = folder / "bin" / "python", megabytes(folder)
    what = f"{wheel}[{extra}]" if extra else str(wheel)
    began, times = time.monotonic(), os.times()
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-cache-dir", *options, what]
    subprocess.run([str(c) for c in command], check=True)
    now = os.times()
    busy = now.children_user + now.children_system - times.children_user - times.children_system
    return f"{megabytes(folder) - before:6.0f} MB {time.monotonic() - began:6.1f} s {busy:6.1f} s of the processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="where make puts llama-cpp-python's wheel")
    parser.add_argument("--arm", action="store_true")
    parser.add_argument("extras", nargs="*", default=EXTRAS, help="such as onnx or gguf,server; '' for none")
    asked = parser.parse_args()
    wheels = machine.llama() if asked.arm else asked.wheels
    with tempfile.TemporaryDirectory() as work:
        machine.own_wheel(Path(work))
        wheel = next(Path(work).glob("sampan-*.whl"))
        for extra in asked.extras:
            with tempfile.TemporaryDirectory() as target:
                options = ("--find-links", wheels) if wheels else ()
                cost = install(Path(target) / "env", wheel, extra, options, asked.arm)
                print(f"{f'sampan[{extra}]' if extra else 'sampan':26} {cost}", flush=True)


if __name__ == "__main__":
    main()
