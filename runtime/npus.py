"""Neural processors, by what Linux shows of them: device nodes, drivers, the device tree. It says what is there, not
whether a program can use it: that is a target's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from sampan.rknn import CHIPS

from .machine import Machine

# Drivers of /sys/class/accel in Linux 6.18 (drivers/accel), and whose processors they drive.
ACCEL = {
    "rocket": "Rockchip NPU",
    "intel_vpu": "Intel NPU",
    "amdxdna": "AMD NPU",
    "ethosu": "Arm Ethos-U NPU",
    "qaic": "Qualcomm Cloud AI",
    "habanalabs": "Intel Gaudi",
}
LIBRARIES = ("/usr/lib", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib", "/vendor/lib64", "/system/lib64")


@dataclass(frozen=True, slots=True)
class Npu:
    """`driver` with its version where the system tells it, `nodes` what a program opens, `libraries` what was found.

    `chip`: as its maker writes it, such as SM8550; `target`: the file of `runtime/targets` that would be for it.
    """

    name: str
    driver: str
    nodes: tuple[str, ...]
    libraries: tuple[str, ...]
    chip: str = ""
    target: str = ""

    def __str__(self) -> str:
        parts = [self.name]
        parts += [f"driver {self.driver}"] if self.driver else ["no driver"]
        parts += [", ".join(self.nodes)] if self.nodes else []
        parts += [", ".join(self.libraries)] if self.libraries else []
        return "; ".join(parts)


def npus(machine: Machine) -> list[Npu]:
    """Those of Rockchip, of Qualcomm, and what registered itself as an accelerator."""
    return [*_accelerators(machine), *_rockchip(machine), *_qualcomm(machine)]


def _accelerators(machine: Machine) -> list[Npu]:
    """Documentation/accel/introduction.rst: /dev/accel/accel0 and /sys/class/accel/accel0."""
    found = []
    for path in machine.paths("/sys/class/accel/accel[0-9]*"):
        driver, node = machine.link(f"{path}/device/driver"), f"/dev/accel/{path.rpartition('/')[2]}"
        name = ACCEL.get(driver, "an accelerator")
        chip = _rockchip_chip(machine)[0] if driver == "rocket" else ""  # Rockchip's library takes RKNPU alone
        found.append(Npu(name, _versioned(machine, driver), tuple(machine.paths(node)), (), chip))
    return found


def _rockchip(machine: Machine) -> list[Npu]:
    """Rockchip's own driver, RKNPU; its version lies where only root reads it, in /sys/kernel/debug/rknpu/version."""
    bound = [p.rpartition("/")[2] for p in machine.paths("/sys/bus/platform/drivers/RKNPU/*.npu")]
    in_tree = machine.paths("/proc/device-tree/npu@*")
    if not bound and not (in_tree and "rockchip," in machine.text("/proc/device-tree/compatible")):
        return []
    if machine.paths("/sys/bus/platform/drivers/rocket/*.npu"):
        return []  # told by the accelerators
    version = machine.text("/sys/kernel/debug/rknpu/version") or machine.text("/proc/rknpu/version")
    driver = version.strip().replace("RKNPU driver: ", "RKNPU ") or ("RKNPU" if bound else "")
    libraries = _libraries(machine, "librkllmrt.so", "librknnrt.so")
    return [Npu("Rockchip NPU", driver, tuple(bound), libraries, *_rockchip_chip(machine))]


def _rockchip_chip(machine: Machine) -> tuple[str, str]:
    """`rockchip,rk3588s` among the names of the board → RK3588S, and the target for it."""
    named = machine.text("/proc/device-tree/compatible").split("\0")
    chip = next((n.removeprefix("rockchip,") for n in reversed(named) if n.startswith("rockchip,rk")), "")
    return chip.upper(), next((c for c in CHIPS if chip.startswith(c)), "")


def _qualcomm(machine: Machine) -> list[Npu]:
    """The Hexagon DSP that computes: /dev/fastrpc-cdsp of Linux, /dev/adsprpc-smd of older Android kernels."""
    nodes = machine.paths("/dev/fastrpc-cdsp*") + machine.paths("/dev/adsprpc-smd*")
    states = [
        machine.text(f"{p.rpartition('/')[0]}/state").strip()
        for p in machine.paths("/sys/class/remoteproc/*/name")
        if machine.text(p).strip().startswith("cdsp")
    ]
    if not nodes and not states:
        return []
    driver = "fastrpc" if nodes else ""
    state = f", cdsp {states[0]}" if states and states[0] else ""
    soc = machine.text("/sys/devices/soc0/machine").strip()
    name = f"Qualcomm Hexagon NPU{f' of {soc}' if soc else ''}{state}"
    return [Npu(name, driver, tuple(nodes), _libraries(machine, "libcdsprpc.so", "libQnnHtp.so"), soc, "qnn")]


def _versioned(machine: Machine, driver: str) -> str:
    version = machine.text(f"/sys/module/{driver}/version").strip() if driver else ""
    return f"{driver} {version}" if version else driver


def _libraries(machine: Machine, *names: str) -> tuple[str, ...]:
    return tuple(p for folder in LIBRARIES for name in names for p in machine.paths(f"{folder}/{name}"))
