"""An aarch64 machine that needs no kernel of its own: Debian's packages, PyPI's wheels, llama.cpp by zig, and qemu.

python tests/arm/machine.py          # make what is missing, and install sampan
python tests/arm/machine.py --pin    # write wheels.txt anew, for the versions of pyproject.toml

It ends with 75 where pip or apt reached no server, with 1 for everything else that is wrong.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(PROJECT / "android-demo" / "make"))
from native import TOOLCHAIN, digest, toolchain  # noqa: E402
from tools import BuildError, alone, pins, run, unpacked  # noqa: E402

# Where what was downloaded and compiled is kept. Safe to delete; then it is made anew. zig and llama.cpp's sources
# come from the Android demo's cache.
CACHE = Path(os.environ.get("SAMPAN_ARM") or PROJECT / "build" / "arm-cache").absolute()
WHEELS = HERE / "wheels.txt"
PYTHON = CACHE / "python"  # runs the guest's, with sampan and what the tests need

GUEST = ("python3", "libstdc++6")  # of Debian; with what they need
TOOLS = ("pytest", "pytest-timeout", "ml_dtypes", "safetensors")
EXTRAS = ("gguf", "onnx")
COMMANDS = {"qemu-aarch64-static": "qemu-user-static", "cmake": "cmake", "ninja": "ninja-build", "dpkg-deb": "dpkg"}

# Cortex-A76 (Raspberry Pi 5, RK3588) has dotprod; what has i8mm too is younger (Snapdragon 8 Gen 1, X, Neoverse V1).
# fullfp16 is what zig calls fp16.
DOTPROD, I8MM = "armv8.2-a+dotprod+fullfp16", "armv8.2-a+dotprod+fullfp16+i8mm"
CPUS = {"dotprod": "neoverse-n1", "i8mm": "max,sme=off"}  # qemu's names; N1 is A76 for servers
# glibc 2.28, as PyPI's wheels. -s from CMake's first trial on: else zig makes one more C++ library, in 2 minutes
FLAGS = "-O3 -g0 -s -target aarch64-linux-gnu.2.28"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    *(f"-D{off}=OFF" for off in (
        "GGML_NATIVE", "GGML_OPENMP", "GGML_LLAMAFILE", "LLAMA_OPENSSL", "LLAMA_BUILD_COMMON", "LLAMA_BUILD_TOOLS",
        "LLAMA_BUILD_SERVER", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_APP",
    )),
)  # fmt: skip
UNFUSED = "cmake_language(DEFER CALL target_compile_options ggml-base PRIVATE -ffp-contract=off)\n"
# CMake's target, the processor, what llama.cpp's project includes. The second build is for ggml-cpu with i8mm and,
# since that needs a ggml-base, for one without fused multiply-add.
BUILDS = {"first": ("llama", DOTPROD, ""), "second": ("ggml-cpu", I8MM, UNFUSED)}
# folder of the libraries → which of them are of the second build
FOLDERS = {"dotprod": "", "i8mm": "libggml-cpu.so", "unfused": "libggml-base.so"}

UNREACHABLE = 75  # sysexits.h: try again later
# what pip and apt say then, and not where a file that came has another hash
OFFLINE = re.compile(
    r"\A(?:python[\d.]*|apt-get) ended with (?!.*DO NOT MATCH THE HASHES).*"
    r"(?:NewConnectionError|ProxyError|NameResolutionError|[Tt]imed out|Temporary failure|Could not (?:connect|resolve)"
    r"|Connection (?:refused|reset|failed)|unreachable|No route to host|\b50[234]\b)", re.DOTALL,
)  # fmt: skip

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


def pip(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments)


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
    """Debian's python3 for arm64 and the libraries under it, unpacked; apt checks signatures, its state is our own."""

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
            run(*apt, "update", "--error-on=any")
            run(*apt, "install", "-y", "--download-only", "--no-install-recommends", *GUEST)
            for package in sorted((Path(state) / "cache" / "archives").glob("*.deb")):
                run("dpkg-deb", "-x", package, folder)
        # Debian does so on installing. Of use where this Python is of that version; else the guest does it, slowly
        for library in (folder / "usr" / "lib").glob("python3*"):
            run(sys.executable, "-m", "compileall", "-q", "-j0", library)
        (folder / "proc").mkdir()
        (folder / "proc" / "cpuinfo").write_text("".join(CPUINFO.format(n=n) for n in range(os.cpu_count() or 1)))

    release = Path("/etc/os-release").read_text()
    return made("root", f"{GUEST}{CPUINFO}{release}{sys.version_info[:2]}", build)


def llama() -> Path:
    """A wheel of llama-cpp-python for processors with dotprod, and folders of its libraries otherwise compiled.

    `i8mm/`: with a ggml-cpu for processors with i8mm. `unfused/`: with a ggml-base without fused multiply-add.
    """

    def build(folder: Path) -> None:
        print("Compiling llama.cpp for aarch64: about 9 minutes of one core, once.", flush=True)
        with alone():
            environment = toolchain(folder.parent)
            source = unpacked("llama-cpp-python", "vendor/llama.cpp")
        first, second = (folder.parent / name for name in BUILDS)
        for tree, (target, cpu, included) in zip((first, second), BUILDS.values(), strict=True):
            (hook := tree.with_suffix(".cmake")).write_text(included)
            run(
                "cmake", "-G", "Ninja", "-S", source, "-B", tree, *OPTIONS, f"-DGGML_CPU_ARM_ARCH={cpu}",
                f"-DCMAKE_TOOLCHAIN_FILE={folder.parent}/zig.cmake", f"-DCMAKE_C_FLAGS={FLAGS}",
                f"-DCMAKE_CXX_FLAGS={FLAGS}", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={hook}", env=environment,
            )  # fmt: skip
            run("cmake", "--build", tree, "--target", target, env=environment)
        for name, other in FOLDERS.items():
            (folder / name).mkdir()
            for path in (first / "bin").glob("lib*.so"):
                shutil.copy((second if path.name == other else first) / "bin" / path.name, folder / name)
        llama_wheel(folder, folder / "dotprod")

    tools = digest([HERE.parents[1] / "android-demo" / "make" / name for name in TOOLCHAIN])
    pinned = {name: pins()[name] for name in ("ziglang", "llama-cpp-python")}
    return made("llama", f"{tools}{pinned}{FLAGS}{OPTIONS}{BUILDS}{FOLDERS}", build)


def llama_wheel(folder: Path, libraries: Path) -> None:
    """Pack what llama-cpp-python's own build would (PyPA's binary distribution format), the libraries from a folder."""
    source = unpacked("llama-cpp-python", "PKG-INFO").parent
    version = pins()["llama-cpp-python"][0]
    info, tag = f"llama_cpp_python-{version}.dist-info", "py3-none-linux_aarch64"
    files = {str(p.relative_to(source)): p.read_bytes() for p in sorted((source / "llama_cpp").rglob("*.py"))}
    files |= {f"llama_cpp/lib/{p.name}": p.read_bytes() for p in sorted(libraries.iterdir())}
    files[f"{info}/METADATA"] = (source / "PKG-INFO").read_bytes()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: sampan\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    lines = [f"{name},sha256={_record(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(folder / f"llama_cpp_python-{version}-{tag}.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)


def _record(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


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
    arguments = ("--require-hashes", "--no-deps", "-r", WHEELS, *for_guest())

    def build(folder: Path) -> None:
        pip("download", *arguments, "-d", folder)

    return made("wheels", f"{WHEELS.read_text()}{arguments}", build)


def own_wheel(folder: Path) -> str:
    """The wheel of this checkout, with the extras that a device wants."""
    config = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    with tempfile.TemporaryDirectory() as work:  # setuptools leaves files of older builds in the folder it builds in
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(PROJECT / name, work)
        for name in sorted({f.split("/")[0] for f in config["tool"]["setuptools"]["package-dir"].values()}):
            shutil.copytree(PROJECT / name, Path(work) / name, ignore=shutil.ignore_patterns("__pycache__"))
        pip("wheel", "--no-deps", "-w", folder, work)
    return f"{next(folder.glob('sampan-*.whl'))}[{','.join(EXTRAS)}]"


def install() -> None:
    """sampan of this checkout and what it needs, from the pinned wheels alone, and PYTHON, which runs it."""
    with ThreadPoolExecutor() as pool:  # one waits for the network, the other computes
        compiled = pool.submit(llama)
        guest, base = for_guest(), root()
        wheels()
        compiled.result()

    def into(folder: Path, *what: str) -> None:
        offline = ("--no-index", "--find-links", wheels(), "--find-links", llama())
        pip("install", *offline, *guest, "--target", folder, *what)

    key = f"{WHEELS.read_text()}{llama()}{guest}{(PROJECT / 'pyproject.toml').read_text()}"
    with tempfile.TemporaryDirectory() as work:
        wheel = own_wheel(Path(work))
        site = made("site", key, lambda folder: into(folder, wheel, *TOOLS))
        into(site, "--upgrade", "--no-deps", wheel.partition("[")[0])  # this checkout's, where the rest was there
    python = next(p for p in (base / "usr" / "bin").glob("python3.*") if p.name[8:].isdecimal())
    PYTHON.write_text(
        f"#!/bin/sh\nexport QEMU_LD_PREFIX={base} PYTHONHOME={base}/usr PYTHONPATH=$ARM_FIRST{site}\n"
        f'exec qemu-aarch64-static -0 {PYTHON} {python} "$@"\n'
    )  # -0: sys.executable, so that a child process runs in the same way
    PYTHON.chmod(0o755)


def guest(cpu: str, first: str = "", **more: str) -> Mapping[str, str]:
    """The environment for PYTHON on one of CPUS; `first` is a folder of packages that goes before all others."""
    return os.environ | {"QEMU_CPU": CPUS.get(cpu, cpu), "ARM_FIRST": first and f"{first}:"} | more


def pin() -> None:
    """Resolve anew what pyproject.toml asks for, and write down what came."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for e in EXTRAS for d in project["optional-dependencies"][e])]
    said = pip(
        "install", "--dry-run", "--ignore-installed", "--report", "-", "--find-links", llama(), *for_guest(),
        "--target", CACHE, *wanted, *TOOLS,
    )  # fmt: skip
    lines = sorted(
        f"{p['metadata']['name']}=={p['metadata']['version']} "
        f"--hash=sha256:{p['download_info']['archive_info']['hashes']['sha256']}\n"
        for p in json.loads(said)["install"]
        if not p["download_info"]["url"].startswith(llama().as_uri())
    )
    WHEELS.write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pin", action="store_true")
    asked = parser.parse_args()
    if absent := [package for command, package in COMMANDS.items() if not shutil.which(command)]:
        raise BuildError(f"missing Debian packages: sudo apt-get install {' '.join(absent)}")
    CACHE.mkdir(parents=True, exist_ok=True)
    if asked.pin:
        pin()
    install()


if __name__ == "__main__":
    try:
        main()
    except BuildError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(UNREACHABLE if OFFLINE.search(str(e)) else 1)
