"""An aarch64 machine that needs no kernel of its own: Debian packages, PyPI's wheels, a cross-compiled llama.cpp, qemu.

python tests/arm/machine.py          # make what is missing and install sampan; prints what that costs
python tests/arm/machine.py --pin    # write wheels.txt and llama.txt anew, for the versions of pyproject.toml
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
# Where what was downloaded and compiled is kept. Safe to delete; then it is made anew.
CACHE = Path(os.environ.get("SAMPAN_ARM") or PROJECT / "build" / "arm").absolute()
SITE, PYTHON = CACHE / "site", CACHE / "python"

GUEST = ("python3", "libstdc++6", "libgomp1")  # of Debian; with what they need
TOOLS = ("pytest", "pytest-timeout", "safetensors", "ml_dtypes")
NOT_INSTALLED = {"test", "lint", "reference"}  # extras
COMMANDS = {
    "qemu-aarch64-static": "qemu-user-static", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "cmake": "cmake",
    "dpkg-deb": "dpkg",
}  # fmt: skip

# Cortex-A76 (Raspberry Pi 5, RK3588) has dotprod; what has i8mm too is younger (Snapdragon 8 Gen 1, X, Neoverse V1).
DOTPROD, I8MM = "armv8.2-a+dotprod+fp16", "armv8.6-a+dotprod+fp16+i8mm"
CPUS = {"dotprod": "neoverse-n1", "i8mm": "max,sme=off"}  # qemu's names; N1 is A76 for servers
CROSS = (
    "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DGGML_NATIVE=OFF",
)  # fmt: skip
ALONE = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_COMMON=OFF")
# onnxruntime dies at import where the kernel names no ARM processor
CPUINFO = """\
processor\t: {n}
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a command of the host; its standard output."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def pip(*arguments: str | Path, **environment: str) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments, **environment)


def made(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache that `build` makes out of what `key` says; an older one goes."""
    folder = CACHE / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.exists():
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=CACHE) as work:
            new = Path(work) / "new"
            new.mkdir()
            build(new)
            for old in CACHE.glob(f"{name}-*"):
                shutil.rmtree(old)
            new.rename(folder)
        print(f"{name}: made in {time.monotonic() - began:.0f} s", flush=True)
    return folder


def root() -> Path:
    """Debian's python3 for arm64 and the libraries under it, unpacked; apt's state is our own."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as state:
            for name in ("state/lists/partial", "cache/archives/partial"):
                (Path(state) / name).mkdir(parents=True)
            (status := Path(state) / "status").touch()
            private = (
                f"Dir::State={state}/state", f"Dir::State::status={status}", f"Dir::Cache={state}/cache",
                "APT::Architecture=arm64", "APT::Architectures=arm64", "APT::Sandbox::User=root",
            )  # fmt: skip
            apt = ["apt-get", "-qq", *(a for setting in private for a in ("-o", setting))]
            run(*apt, "update")
            run(*apt, "install", "-y", "--download-only", "--no-install-recommends", *GUEST)
            for package in sorted((Path(state) / "cache" / "archives").glob("*.deb")):
                run("dpkg-deb", "-x", package, folder)
        (folder / "proc").mkdir()
        (folder / "proc" / "cpuinfo").write_text("".join(CPUINFO.format(n=n) for n in range(os.cpu_count() or 1)))

    release = Path("/etc/os-release").read_text()
    return made("root", f"{GUEST}{CPUINFO}{release}", build)


def llama() -> Path:
    """A wheel of llama-cpp-python for processors with dotprod, and beside it its libraries otherwise compiled.

    `i8mm/`: with a ggml-cpu for processors with i8mm. `exact/`: with a ggml-base without fused multiply-add.
    """

    def build(folder: Path) -> None:
        print("Compiling llama.cpp for aarch64: about 5 minutes on 2 cores, once.", flush=True)
        work = folder.parent
        pinned = ("--require-hashes", "--no-deps", "--no-binary=:all:", "-r", HERE / "llama.txt")
        pip("download", *pinned, "-d", work)
        with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        source = next(p for p in work.glob("llama_cpp_python-*") if p.is_dir())
        (hook := work / "hook.cmake").write_text("set(LLAMA_BUILD_COMMON OFF)\n")  # the outer one turns it on
        options = (
            *CROSS,
            f"-DGGML_CPU_ARM_ARCH={DOTPROD}",
            "-DLLAVA_BUILD=OFF",
            f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={hook}",
        )
        pip(
            "wheel",
            "--no-deps",
            "-w",
            folder,
            source,
            CMAKE_ARGS=" ".join(options),
            _PYTHON_HOST_PLATFORM="linux-aarch64",
        )
        for name, target, option in (
            ("i8mm", "ggml-cpu", f"-DGGML_CPU_ARM_ARCH={I8MM}"),
            ("exact", "ggml-base", "-DCMAKE_C_FLAGS=-ffp-contract=off"),
        ):
            run("cmake", "-S", source / "vendor" / "llama.cpp", "-B", work / name, *CROSS, *ALONE, option)
            run("cmake", "--build", work / name, "--target", target, "--parallel")
            new = next((work / name).rglob(f"lib{target}.so"))
            shutil.copytree(source / "llama_cpp" / "lib", folder / name)
            for library in (folder / name).glob(f"{new.name}*"):  # its names with versions too
                library.unlink()
                shutil.copy(new, library)

    compiler = run("aarch64-linux-gnu-g++", "--version")
    return made("llama", f"{(HERE / 'llama.txt').read_text()}{DOTPROD}{I8MM}{CROSS}{ALONE}{compiler}", build)


def for_guest() -> tuple[str, ...]:
    """What pip is told so that it takes wheels for the guest."""
    version = next(p.name for p in (root() / "usr" / "bin").glob("python3.*") if p.name[8:].isdecimal())[6:]
    platforms = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64")
    return (
        "--python-version", version, "--implementation", "cp", "--only-binary=:all:",
        *(a for p in platforms for a in ("--platform", p)),
    )  # fmt: skip


def wheels() -> Path:
    """The wheels that wheels.txt names, by their hashes."""
    listed = HERE / "wheels.txt"
    arguments = ("--require-hashes", "--no-deps", "-r", listed, *for_guest())
    return made(
        "wheels",
        f"{listed.read_text()}{arguments}",
        lambda folder: print(pip("download", *arguments, "-d", folder), end=""),
    )


def own_wheel(folder: Path) -> str:
    """The wheel of this checkout, with the extras that a device wants."""
    config = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    with tempfile.TemporaryDirectory() as work:  # setuptools leaves files of older builds in the folder it builds in
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(PROJECT / name, work)
        for name in sorted({f.split("/")[0] for f in config["tool"]["setuptools"]["package-dir"].values()}):
            shutil.copytree(PROJECT / name, Path(work) / name, ignore=shutil.ignore_patterns("__pycache__"))
        pip("wheel", "--no-deps", "-w", folder, work)
    extras = sorted(set(config["project"].get("optional-dependencies", {})) - NOT_INSTALLED)
    return f"{next(folder.glob('sampan-*.whl'))}[{','.join(extras)}]"


def install() -> None:
    """sampan of this checkout and what it needs into SITE, from the pinned wheels alone, and PYTHON, which runs it."""
    guest, base = for_guest(), root()
    offline = ("--no-index", "--find-links", wheels(), "--find-links", llama())
    for folder in (SITE, tools := CACHE / "tools"):
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        wheel = own_wheel(Path(work))
        began = time.monotonic()
        pip("install", *offline, *guest, "--target", SITE, wheel)
        seconds = time.monotonic() - began
    pip("install", *offline, *guest, "--target", tools, *TOOLS)
    python = next(p for p in (base / "usr" / "bin").glob("python3.*") if p.name[8:].isdecimal())
    PYTHON.write_text(
        f"#!/bin/sh\nexport QEMU_LD_PREFIX={base} PYTHONHOME={base}/usr PYTHONPATH=$ARM_FIRST{SITE}:{tools}\n"
        f'exec qemu-aarch64-static -0 {PYTHON} {python} "$@"\n'
    )  # -0: sys.executable, so that a child process runs in the same way
    PYTHON.chmod(0o755)
    print(f"an install of sampan on aarch64: {size(SITE):.0f} MB in {seconds:.0f} s (pip on this machine)")
    largest = sorted(((size(p), p.name) for p in SITE.iterdir() if p.is_dir()), reverse=True)[:8]
    print("  " + ", ".join(f"{name} {mb:.0f}" for mb, name in largest))
    print(f"Debian's python3 and its libraries under it: {size(base):.0f} MB")


def size(folder: Path) -> float:
    """MB on the disk, bytecode left out: pip of another Python made it."""
    return sum(p.lstat().st_blocks * 512 for p in folder.rglob("*") if p.suffix != ".pyc") / 1e6


def guest(cpu: str, first: str = "", **more: str) -> Mapping[str, str]:
    """The environment for PYTHON on one of CPUS; `first` is a folder of packages that goes before all others."""
    return os.environ | {"QEMU_CPU": CPUS.get(cpu, cpu), "ARM_FIRST": first and f"{first}:"} | more


def pin() -> None:
    """Resolve anew what pyproject.toml asks for, and write down what came."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    wanted = [*project["dependencies"], *(d for e in extras.keys() - NOT_INSTALLED for d in extras[e])]
    ours = next(d for d in wanted if d.startswith("llama-cpp-python=="))
    dry = ("install", "--dry-run", "--ignore-installed", "--report", "-")
    for name, arguments in (
        ("llama.txt", ("--no-deps", "--no-binary=:all:", ours)),
        ("wheels.txt", (*for_guest(), "--target", CACHE, *wanted, *TOOLS)),
    ):
        found = ("--find-links", llama()) if name == "wheels.txt" else ()
        report = json.loads(pip(*dry, *arguments, *found))
        lines = sorted(
            f"{p['metadata']['name']}=={p['metadata']['version']} "
            f"--hash=sha256:{p['download_info']['archive_info']['hashes']['sha256']}\n"
            for p in report["install"]
            if not p["download_info"]["url"].startswith(llama().as_uri() if found else "file:")
        )
        (HERE / name).write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pin", action="store_true")
    asked = parser.parse_args()
    if absent := [package for command, package in COMMANDS.items() if not shutil.which(command)]:
        sys.exit(f"error: expected the commands {', '.join(COMMANDS)}; apt-get install {' '.join(absent)}")
    CACHE.mkdir(parents=True, exist_ok=True)
    if asked.pin:
        pin()
    install()


if __name__ == "__main__":
    main()
