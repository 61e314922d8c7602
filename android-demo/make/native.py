"""The engine's two programs for arm64, compiled by zig from llama.cpp's sources, in a cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tools import CACHE, HERE, BuildError, alone, pins, run, unpacked

ENGINE = HERE.parent / "engine"
TOOLCHAIN = ("zig-cc", "zig-ar", "zig-ranlib", "zig.cmake")
PLAIN, FAST = "armv8.2-a+dotprod", "armv8.2-a+dotprod+i8mm"
SANITIZED = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address"
UNDEFINED = "-fsanitize=undefined;-fno-sanitize-recover=undefined"  # of the engine alone
FLAGS = "-O3 -g0 -ffile-prefix-map={llama}=llama.cpp -ffile-prefix-map={tree}=."  # nothing of this machine in a program
PROGRAMS = {"libsampan_engine.so": "engine", "libsampan_engine_i8mm.so": "engine-i8mm"}  # in the app → in the build


def digest(paths: list[Path], *more: str) -> str:
    """A name for the contents of some files."""
    total = hashlib.sha256("\0".join(more).encode())
    for path in sorted(paths):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def build() -> dict[str, Path]:
    """File name in the app → the stripped program, made where the cache has it not."""
    wanted = {name: pins()[name] for name in ("ziglang", "llama-cpp-python")}
    sources = [p for p in ENGINE.iterdir() if p.suffix in (".cpp", ".h", ".txt")]
    tools = [HERE / name for name in TOOLCHAIN]
    # llama.cpp's own objects are kept as long as these stay; ninja sees which of the engine's changed
    tree = CACHE / "engine" / digest(tools, repr(wanted), PLAIN, FAST, FLAGS)
    made = tree / digest(sources)
    if not all((made / name).exists() for name in PROGRAMS):
        with alone():
            _build(tree, made, sources, tools)
    return {name: made / name for name in PROGRAMS}


def _build(tree: Path, made: Path, sources: list[Path], tools: list[Path]) -> None:
    zig = unpacked("ziglang", "ziglang/zig")
    zig.chmod(0o755)
    llama = unpacked("llama-cpp-python", "vendor/llama.cpp")
    _copy(sources, tree / "engine")
    _copy(tools, tree)
    for tool in TOOLCHAIN[:3]:
        (tree / tool).chmod(0o755)
    caches = {f"ZIG_{kind}_CACHE_DIR": str(CACHE / "zig") for kind in ("GLOBAL", "LOCAL")}
    environment = os.environ | caches | {"ZIG": str(zig)}
    version = f"llama.cpp of llama-cpp-python {pins()['llama-cpp-python'][0]}"
    flags = FLAGS.format(llama=llama, tree=tree)

    def configure(folder: Path, cpu: str, *more: str) -> None:
        run(
            "cmake", "-G", "Ninja", "-S", tree / "engine", "-B", folder, f"-DCMAKE_TOOLCHAIN_FILE={tree}/zig.cmake",
            "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}",
            f"-DLLAMA_CPP={llama}", f"-DENGINE_VERSION={version}", f"-DGGML_CPU_ARM_ARCH={cpu}", *more, env=environment,
        )  # fmt: skip

    fast, plain = tree / "fast", tree / "plain"
    configure(fast, FAST)
    run("cmake", "--build", fast, "--target", "ggml-cpu", env=environment)
    kernels = next(fast.rglob("libggml-cpu.a"), None)
    if kernels is None:
        raise BuildError(f"{fast}: the build left no libggml-cpu.a")
    configure(plain, PLAIN, f"-DENGINE_CPUS=i8mm={kernels}")
    run("cmake", "--build", plain, "--target", *PROGRAMS.values(), env=environment)
    part = made.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, target in PROGRAMS.items():
        shutil.copy(plain / target, part / name)
    part.rename(made)


def sanitized() -> Path:
    """The engine as a program of this machine whose sanitizers end it at a fault, for tests/fuzz/test_engine.py."""
    llama = unpacked("llama-cpp-python", "vendor/llama.cpp")
    tree = CACHE / "sanitized" / digest([], repr(pins()["llama-cpp-python"]), SANITIZED, UNDEFINED)
    with alone():
        _copy([p for p in ENGINE.iterdir() if p.suffix in (".cpp", ".h", ".txt")], tree / "engine")
        run(
            "cmake", "-G", "Ninja", "-S", tree / "engine", "-B", tree / "build", "-DCMAKE_BUILD_TYPE=None",
            f"-DCMAKE_C_FLAGS={SANITIZED}", f"-DCMAKE_CXX_FLAGS={SANITIZED}", f"-DLLAMA_CPP={llama}",
            f"-DENGINE_FLAGS={UNDEFINED}", "-DCMAKE_EXE_LINKER_FLAGS=-fsanitize=undefined",
        )  # fmt: skip
        run("cmake", "--build", tree / "build", "--target", "engine")
    return tree / "build/engine"


def _copy(files: list[Path], folder: Path) -> None:
    """The same files there, and no others of their kind; what did not change keeps its time."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.suffix in (".cpp", ".h") and old.name not in {f.name for f in files}:
            old.unlink()
    for file in files:
        target = folder / file.name
        if not target.exists() or target.read_bytes() != file.read_bytes():
            shutil.copy(file, target)
