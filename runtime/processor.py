"""The processor: its cores, which of them are fast, what it can compute, and how many threads that means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .machine import Machine, cores_of, quota

CPU = "/sys/devices/system/cpu"
ALIKE = 0.9  # cores that reach this share of the fastest one's speed are of its kind, whatever its boost
SAME = 0.5  # the same for those of its part number
# What /proc/cpuinfo calls what engines have kernels for, by the name in use; `flags` on x86, `Features` on ARM.
X86 = {
    "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx512": "avx512f", "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16", "avx_vnni": "avx_vnni", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16",
}  # fmt: skip
ARM = {
    "fp16": "asimdhp", "dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2", "sme": "sme",
    "sme2": "sme2",
}  # fmt: skip
# MIDR_EL1: implementer and part number, from Arm's and Qualcomm's manuals, as lscpu names them.
PARTS = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35", (0x41, 0xD05): "Cortex-A55", (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72", (0x41, 0xD09): "Cortex-A73", (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1", (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78", (0x41, 0xD44): "Cortex-X1", (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2", (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4D): "Cortex-A715", (0x41, 0xD4E): "Cortex-X3", (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520", (0x41, 0xD81): "Cortex-A720", (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD85): "Cortex-X925", (0x41, 0xD87): "Cortex-A725", (0x51, 0x001): "Oryon",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Core:
    """`speed` compares cores of one machine: cpu_capacity, else the highest frequency in kHz, 0 where neither is told.

    Threads of one physical core have the same `physical`.
    """

    number: int
    name: str
    speed: int
    physical: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Processor:
    """`cores` are those that this process may use; `fast` those of them that compute; `quota` as cores' time."""

    name: str
    features: tuple[str, ...]
    cores: tuple[Core, ...]
    fast: tuple[Core, ...]
    quota: float | None

    @property
    def physical(self) -> int:
        """How many physical cores the fast ones are."""
        return len({c.physical for c in self.fast})

    @property
    def threads(self) -> int:
        """How many threads compute: one for each fast physical core, no more than the quota gives time to.

        So do llama.cpp's own programs (cpu_get_num_math in its common/common.cpp) and ONNX Runtime by default.
        """
        return max(1, self.physical if self.quota is None else min(self.physical, int(self.quota)))


def processor(machine: Machine) -> Processor:
    """What /proc/cpuinfo and /sys tell; the cores are told by the system's own list in any case."""
    blocks = _blocks(machine.text("/proc/cpuinfo"))
    common = next(iter(blocks.values()), {})
    speeds = _speeds(machine)
    cores = []
    for n in machine.allowed:
        siblings = tuple(cores_of(machine.text(f"{CPU}/cpu{n}/topology/thread_siblings_list")))
        cores.append(Core(n, _name(blocks.get(n, common)), speeds[n], siblings if n in siblings else (n,)))
    names = dict.fromkeys(c.name for c in cores if c.name)
    parts = {n: _part(block) for n, block in blocks.items()}
    return Processor(
        " + ".join(names), _features(list(blocks.values())), tuple(cores), _fast(cores, parts), quota(machine)
    )


def _fast(cores: list[Core], parts: Mapping[int, tuple[int, int] | None]) -> tuple[Core, ...]:
    """The big cores where they differ: the middle ones of three kinds count where they are nearer to the fastest.

    Cores of the fastest one's part are big ones too at a lower frequency, such as six of the eight of an 8 Elite.
    """
    top, low = max(c.speed for c in cores), min(c.speed for c in cores)
    if not low or low >= ALIKE * top:
        return tuple(cores)
    big = {parts.get(c.number) for c in cores if c.speed == top} - {None}
    return tuple(
        c for c in cores if c.speed - low >= top - c.speed or (parts.get(c.number) in big and c.speed >= SAME * top)
    )


def _speeds(machine: Machine) -> dict[int, int]:
    """By the first of two files that tells of every core: Documentation/ABI/testing/sysfs-devices-system-cpu."""
    for file in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        found = {n: machine.number(f"{CPU}/cpu{n}/{file}") or 0 for n in machine.allowed}
        if all(found.values()):
            return found
    return dict.fromkeys(machine.allowed, 0)


def _blocks(text: str) -> dict[int, dict[str, str]]:
    """/proc/cpuinfo by core. Old kernels for ARM wrote what all cores share once, above or below."""
    blocks: dict[int, dict[str, str]] = {}
    shared: dict[str, str] = {}
    for part in re.split(r"\n\s*\n", text):
        pairs = (line.partition(":") for line in part.splitlines() if ":" in line)
        fields = {k.strip(): v.strip() for k, _, v in pairs}
        if re.fullmatch(r"\d{1,4}", fields.get("processor", "")):
            blocks[int(fields["processor"])] = fields
        else:
            shared |= fields
    return {n: shared | fields for n, fields in blocks.items()}


def _features(blocks: list[dict[str, str]]) -> tuple[str, ...]:
    """What every core has: a thread may move to any of them."""
    for key, names in (("flags", X86), ("Features", ARM)):
        sets = [set(b[key].split()) for b in blocks if key in b]
        if sets:
            common = set.intersection(*sets)
            return tuple(n for n, word in names.items() if word in common)
    return ()


def _part(block: dict[str, str]) -> tuple[int, int] | None:
    """Implementer and part number, which x86 does not tell."""
    try:
        return int(block["CPU implementer"], 16), int(block["CPU part"], 16)
    except (KeyError, ValueError):
        return None


def _name(block: dict[str, str]) -> str:
    part = _part(block)
    if part is None:
        return block.get("model name", "") or block.get("Hardware", "")
    return PARTS.get(part, f"implementer {part[0]:#x} part {part[1]:#x}")
