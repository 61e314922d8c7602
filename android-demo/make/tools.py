"""What the build needs beside this repository: pinned downloads in a cache, and Debian's Android tools."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PINS = HERE / "pins.txt"
CACHE = Path(os.environ.get("SAMPAN_ANDROID") or ROOT / "build/android-cache").resolve()
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
DEBIAN = {  # program or file → package
    "aapt2": "aapt", "zipalign": "zipalign", "apksigner": "apksigner", "dexdump": "dexdump",
    str(FRAMEWORK): "android-framework-res", "javac": "default-jdk-headless", "cmake": "cmake", "ninja": "ninja-build",
    "qemu-aarch64-static": "qemu-user-static", "c++": "g++",
}  # fmt: skip


class BuildError(Exception):
    """What is missing or wrong, in one line."""


def run(*command: str | Path, **options: object) -> str:
    """Standard output of a command. Raises BuildError with the end of what it said."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise BuildError(f"{Path(command[0]).name} ended with {done.returncode}: {said}")
    return str(done.stdout)


def need_debian() -> None:
    """Install the Debian packages that are missing, as root; else say which they are."""
    missing = sorted({p for name, p in DEBIAN.items() if not (Path(name).exists() or shutil.which(name))})
    if not missing:
        return
    if os.geteuid() != 0 or not os.environ.get("CI"):
        raise BuildError(f"missing Debian packages: sudo apt-get install --no-install-recommends {' '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=environment)


def pins() -> dict[str, tuple[str, str]]:
    """Package → version and SHA-256."""
    found = re.findall(r"^([\w-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", PINS.read_text(), re.M)
    return {name: (version, digest) for name, version, digest in found}


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def download(name: str) -> Path:
    """A pinned file, from the cache or the package index; its hash is checked either way."""
    version, digest = pins()[name]
    folder = CACHE / "downloads" / f"{name}-{version}"
    found = [p for p in folder.glob("*") if sha256(p) == digest]
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        line = next(one for one in PINS.read_text().splitlines() if one.startswith(f"{name}=="))
        wanted = folder / "pins.txt"
        wanted.write_text(line + "\n")
        source = "--no-binary" if name in ("llama-cpp-python", "chaquopy-stubgen") else "--only-binary"
        run(
            sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
            "--ignore-requires-python", source, name, "--require-hashes", "-r", wanted, "-d", folder,
        )  # fmt: skip
        found = [p for p in folder.glob("*") if sha256(p) == digest]
    if not found:
        raise BuildError(f"{name} {version}: the file that pip downloaded has another hash than in {PINS}")
    return found[0]


def unpacked(name: str, member: str) -> Path:
    """The folder or file `member` of a pinned download, unpacked into the cache once."""
    version, digest = pins()[name]
    target = CACHE / "unpacked" / f"{name}-{version}-{digest[:8]}"
    if not target.exists():
        archive, part = download(name), target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as z:
                z.extractall(part)  # noqa: S202 - its hash is known
        else:
            with tarfile.open(archive) as t:
                t.extractall(part, filter="data")
        part.rename(target)
    found = [p for p in (target / member, *target.glob(f"*/{member}")) if p.exists()]
    if not found:
        raise BuildError(f"{name} {version}: it holds no {member}")
    return found[0]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One build at a time in a cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
