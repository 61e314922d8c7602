"""What an install of sampan costs, by extra: MB on disk, seconds, and seconds of the processor.

python benchmarks/install.py --wheels FOLDER   # in new environments of this Python
python benchmarks/install.py --arm             # by pip on the machine of `make test-arm`, whose seconds tell nothing

Downloads are part of the seconds. FOLDER holds llama-cpp-python's wheel; without it, compiling is part of them, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pip

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "arm"))
import machine  # noqa: E402

OURS = ("test", "lint")  # extras for work on sampan itself
BOTH = "gguf,onnx,server"  # what a device would want


def megabytes(folder: Path) -> float:
    return sum(p.lstat().st_blocks * 512 for p in folder.rglob("*")) / 1e6


def install(
    python: Path, folder: Path, what: str, options: Sequence[str | Path], environment: Mapping[str, str]
) -> str:
    """Install into what `folder` holds; the line to print."""
    before, began, times = megabytes(folder), time.monotonic(), os.times()
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-cache-dir", *options, what]
    subprocess.run([str(c) for c in command], check=True, env=environment)
    seconds, now = time.monotonic() - began, os.times()
    busy = now.children_user + now.children_system - times.children_user - times.children_system
    return f"{megabytes(folder) - before:6.0f} MB {seconds:6.1f} s {busy:6.1f} s of the processor"


def main() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="where make puts llama-cpp-python's wheel")
    parser.add_argument("--arm", action="store_true")
    parser.add_argument("extras", nargs="*", default=["", *(e for e in extras if e not in OURS), BOTH],
                        help="such as onnx or gguf,server; '' for none")  # fmt: skip
    asked = parser.parse_args()
    wheels = machine.llama() if asked.arm else asked.wheels
    options = ("--find-links", wheels) if wheels else ()
    with tempfile.TemporaryDirectory() as work:
        machine.own_wheel(Path(work))
        wheel = next(Path(work).glob("sampan-*.whl"))
        shutil.copytree(Path(pip.__file__).parent, Path(work) / "guest" / "pip")  # Debian's python3 brings none
        for extra in asked.extras:
            with tempfile.TemporaryDirectory() as folder:
                what = f"{wheel}[{extra}]" if extra else str(wheel)
                if asked.arm:
                    environment = machine.guest("dotprod", f"{work}/guest")
                    there = (*options, "--only-binary=:all:", "--target", folder)
                    cost = install(machine.PYTHON, Path(folder), what, there, environment)
                else:
                    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
                    cost = install(Path(folder) / "bin" / "python", Path(folder), what, options, os.environ)
                print(f"{f'sampan[{extra}]' if extra else 'sampan':26} {cost}", flush=True)


if __name__ == "__main__":
    main()
