"""What a machine is, what of sampan's engines runs on it, how large a model it can hold, what would make it faster."""

from __future__ import annotations

import importlib
import json
import platform
import re
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sampan import registry
from sampan.child import ended, start
from sampan.errors import brief
from sampan.extras import advice, extras, install, installed
from sampan.rknn import CHIPS

from . import device as devices
from .machine import Machine, Memory, memory
from .memory import Need, need, room
from .npus import Npu, npus
from .processor import CPU, Core, Processor, processor

SECONDS = 60.0  # that an engine's library may take to load
BITS = 4.9  # of a weight at int4, as `sampan convert --plan` says of Qwen3-8B
ENGINES = "sampan.runtime.engines"
# ggml's name of what a processor has: llama.cpp computes with what it was compiled for.
COMPILED = {
    "avx2": "AVX2", "avx512": "AVX512", "avx512_vnni": "AVX512_VNNI", "fp16": "FP16_VA", "dotprod": "DOTPROD",
    "i8mm": "MATMUL_INT8",
}  # fmt: skip
Engines = dict[str, dict[str, Any]]


def examine(machine: Machine, engines: Engines, model: Path | None = None) -> dict[str, Any]:
    """What `sampan doctor --json` prints; `engines` as `probe` gives them.

    Raises InputError for a model that is no GGUF file.
    """
    cpu, held = processor(machine), memory(machine)
    needed = None if model is None else need(model)
    packages = {extra: {p: installed(p) for p in named} for extra, named in extras().items()}
    return {
        "sampan": installed("sampan"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {machine.text('/proc/sys/kernel/osrelease').strip() or platform.release()}",
        "device": _device(machine),
        "processor": {
            "architecture": machine.architecture, "name": cpu.name, "features": list(cpu.features),
            "cores": _kinds(cpu), "quota": cpu.quota, "threads": cpu.threads,
        },
        "memory": asdict(held),
        "engines": engines,
        "npus": [asdict(n) | {"summary": str(n), "needs": _needs(n, packages)} for n in npus(machine)],
        "targets": _targets(machine),
        "extras": {
            extra: {"packages": versions, "install": None if all(versions.values()) else install(extra)}
            for extra, versions in packages.items()
        },
        "room": None if held.available is None else _room(held.available),
        "model": None if needed is None else _fits(needed, held),
        "advice": _advice(machine, cpu, held, engines),
    }  # fmt: skip


def _needs(npu: Npu, packages: dict[str, dict[str, str | None]]) -> list[str]:
    """What must be there before sampan runs a model on an NPU."""
    needs = [] if npu.driver else ["a kernel with its driver"]
    if npu.target not in registry.names("sampan.runtime.targets"):
        return [*needs, "a target of sampan, which has none for it"]
    extra = "rknn" if npu.target in CHIPS else npu.target
    if not all(packages.get(extra, {}).values()):
        needs.append(install(extra))
    known = (d.npu for d in map(devices.read, devices.names()) if d.npu is not None and npu.chip in d.npu.chips)
    target = next((n.target for n in known if n.target), npu.target)
    return [*needs, f"a folder of `sampan convert --to onnx --target {target}`"]


def probe() -> Engines:
    """What each engine's library says of itself, by its name; `error` where it does not load, `install` if that helps.

    In a process for each: a library that was compiled for another processor ends it.
    """
    return {name: _probe(name) for name in registry.names(ENGINES)}


def _probe(name: str) -> dict[str, Any]:
    code = f"import sys; sys.argv = ['', {name!r}]; from sampan.runtime.doctor import main; main()"
    with tempfile.TemporaryFile() as log, start(code, stderr=log) as process:
        try:
            out, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return {"error": f"it did not load within {SECONDS:.0f} s"}
        log.seek(0)
        said = log.read().decode(errors="replace")
    try:
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"its process {ended(process.returncode, said)}"}
    return found


def main() -> None:
    """In a process of its own: one engine's `about`, as JSON."""
    import sys

    engine = importlib.import_module(f"{ENGINES}.{sys.argv[1]}")
    try:
        found = {"name": engine.NAME, **engine.about()}
    except ModuleNotFoundError as e:
        missing = e.name or engine.PACKAGE
        found = {"name": engine.NAME, "error": f"{missing} is not installed", "install": advice(missing)}
    except Exception as e:  # whatever a broken library raises
        found = {"name": engine.NAME, "error": brief(f"{type(e).__name__}: {e}", 300)}
    print(json.dumps(found))


def _device(machine: Machine) -> str | None:
    """The board's or the computer's name: Documentation/ABI/testing/sysfs-firmware-ofw, sysfs-class-dmi."""
    vendor, product = (machine.text(f"/sys/class/dmi/id/{n}").strip() for n in ("sys_vendor", "product_name"))
    tree = machine.text("/proc/device-tree/model").strip("\0 \n")
    return tree or " ".join(p for p in (vendor, product) if p) or None


def _kinds(cpu: Processor) -> list[dict[str, Any]]:
    """Cores that are alike, the slowest first; `computes` says whether sampan counts them."""
    kinds: dict[tuple[str, bool, int], list[Core]] = {}
    for core in cpu.cores:
        kinds.setdefault((core.name, core in cpu.fast, core.speed), []).append(core)
    order = sorted(kinds, key=lambda k: k[2])
    return [
        {"name": name, "numbers": [c.number for c in kinds[name, fast, speed]], "speed": speed, "computes": fast}
        for name, fast, speed in order
    ]


def _targets(machine: Machine) -> dict[str, Any]:
    known = registry.load_all("sampan.runtime.targets", "TARGET")
    return {n: {"name": t.name, "summary": t.summary, "found": t.found(machine)} for n, t in known.items()}


def _room(available: int) -> dict[str, Any]:
    weights = room(available)
    return {"weights": weights, "billions_at_int4": round(8 * weights / BITS / 1e9, 1)}


def _fits(needed: Need, held: Memory) -> dict[str, Any]:
    fits = None if held.available is None else needed.total <= held.available
    return asdict(needed) | {"total": needed.total, "fits": fits}


def _advice(machine: Machine, cpu: Processor, held: Memory, engines: Engines) -> list[str]:
    """What would make this machine faster, of what can be seen."""
    found = []
    llama = engines.get("llama", {})
    if llama.get("compiled_for"):
        compiled = set(llama["compiled_for"])
        compile_here = f"pip install --force-reinstall --no-cache-dir llama-cpp-python=={llama['version']}"
        unused = [f for f in cpu.features if COMPILED.get(f, f) not in compiled and f in COMPILED]
        if unused:
            note = "; then `sampan validate` a model, see docs/arm.md" if "i8mm" in unused else ""
            found.append(
                f"llama.cpp was compiled without {', '.join(unused)}, which this processor has: compile it here, with "
                f"{compile_here}{note}"
            )
        if "dotprod" in cpu.features and "KLEIDIAI" not in compiled:
            found.append(
                "llama.cpp can be compiled with Arm's KleidiAI kernels, which its build fetches: CMAKE_ARGS="
                f"-DGGML_CPU_KLEIDIAI=ON {compile_here}; `sampan bench --compare` tells whether they are faster"
            )
        if "AMX_INT8" in compiled:
            found.append("llama.cpp's AMX kernels are left out, since GCC 12.2 makes them crash")
    if len(cpu.fast) < len(cpu.cores):
        listed = ",".join(str(c.number) for c in cpu.fast)
        found.append(
            f"cores differ: {cpu.threads} threads compute, and the system places them; `taskset -c {listed} sampan …` "
            "keeps them on the fast cores"
        )
    online = len(machine.paths(f"{CPU}/cpu[0-9]*"))
    if len(cpu.cores) < online:
        found.append(f"this process may use {len(cpu.cores)} of {online} cores (taskset, or the container's cpuset)")
    if cpu.quota is not None and cpu.quota < cpu.physical:
        found.append(
            f"the control group gives {cpu.quota:g} cores' time (cpu.max, cpu.cfs_quota_us); more would be faster"
        )
    if slow := _powersave(machine):
        cores = ", ".join(map(str, slow))
        found.append(f"cores {cores} run by the governor powersave, at their lowest frequency: choose performance")
    load = re.match(r"(\d{1,6}\.\d+) ", machine.text("/proc/loadavg"))
    if load and float(load[1]) > len(cpu.cores) / 2:
        found.append(f"other programs compute here: a load of {load[1]} on {len(cpu.cores)} cores")
    if held.limit is not None and held.total and held.limit < held.total:
        found.append(
            "the control group limits memory (memory.max, memory.limit_in_bytes): a larger limit holds a larger model"
        )
    return found


def _powersave(machine: Machine) -> list[int]:
    """Cores at their lowest frequency whatever they do. Drivers that choose by themselves call another thing so."""
    found = []
    for n in machine.allowed:
        at = f"{CPU}/cpu{n}/cpufreq"
        driver = machine.text(f"{at}/scaling_driver").strip()
        chosen = machine.text(f"{at}/scaling_governor").strip()
        if chosen == "powersave" and driver not in ("intel_pstate", "amd-pstate-epp"):
            found.append(n)
    return found
