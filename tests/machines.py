"""Small trees of /proc, /sys and /dev as machines have them, written by hand: what sampan reads and no more."""

from __future__ import annotations

from pathlib import Path

A55 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
V9 = f"{A55} sve i8mm bf16 sve2"
XEON = "fpu sse2 avx avx2 fma f16c avx512f avx512_vnni amx_int8"
CPU = "sys/devices/system/cpu"
Files = dict[str, str]


def arm(cores: list[tuple[str, str, int]], *, speed: str | None = "cpu_capacity") -> Files:
    """Cores of (part, features, speed), numbered from 0."""
    files = {f"{CPU}/online": f"0-{len(cores) - 1}\n", f"{CPU}/cpu0/uevent": ""}
    blocks = []
    for n, (part, features, value) in enumerate(cores):
        blocks.append(f"processor\t: {n}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n")
        files[f"{CPU}/cpu{n}/topology/thread_siblings_list"] = f"{n}\n"
        if speed:
            files[f"{CPU}/cpu{n}/{speed}"] = f"{value}\n"
    files["proc/cpuinfo"] = "\n".join(blocks)
    files["proc/self/status"] = f"Name:\tpython\nCpus_allowed_list:\t0-{len(cores) - 1}\n"
    return files


def x86(cores: int, *, siblings: dict[int, str] | None = None, khz: list[int] | None = None) -> Files:
    files = {"proc/self/status": f"Cpus_allowed_list:\t0-{cores - 1}\n", f"{CPU}/online": f"0-{cores - 1}\n"}
    block = f"processor\t: {{}}\nmodel name\t: Some Processor\nflags\t\t: {XEON}\n"
    files["proc/cpuinfo"] = "\n".join(block.format(n) for n in range(cores))
    for n in range(cores):
        files[f"{CPU}/cpu{n}/topology/thread_siblings_list"] = (siblings or {}).get(n, str(n)) + "\n"
        if khz:
            files[f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq"] = f"{khz[n]}\n"
    return files


def memory(total: int, available: int) -> Files:
    """In MiB."""
    return {"proc/meminfo": f"MemTotal: {total << 10} kB\nMemFree: 1 kB\nMemAvailable: {available << 10} kB\n"}


PI5 = (
    arm([("0xd0b", A55, 2400000)] * 4, speed="cpufreq/cpuinfo_max_freq")
    | memory(8064, 7200)
    | {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}
)
RK3588 = (
    arm([("0xd05", A55, 530)] * 4 + [("0xd0b", A55, 1024)] * 4)
    | memory(15900, 14000)
    | {
        "proc/device-tree/model": "Radxa ROCK 5B\0",
        "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
        "proc/device-tree/npu@fdab0000/name": "npu\0",
        "sys/bus/platform/drivers/RKNPU/fdab0000.npu": "",
        "sys/kernel/debug/rknpu/version": "RKNPU driver: v0.9.8\n",
        "usr/lib/librkllmrt.so": "",
    }
)
PHONE = (
    arm([("0xd46", V9, 326)] * 3 + [("0xd4d", V9, 790)] * 4 + [("0xd4e", V9, 1024)])
    | memory(11000, 5000)
    | {
        "sys/devices/soc0/machine": "SM8550\n",
        "dev/fastrpc-cdsp": "",
        "dev/fastrpc-cdsp-secure": "",
        "sys/class/remoteproc/remoteproc0/name": "adsp\n",
        "sys/class/remoteproc/remoteproc0/state": "offline\n",
        "sys/class/remoteproc/remoteproc1/name": "cdsp\n",
        "sys/class/remoteproc/remoteproc1/state": "running\n",
        "vendor/lib64/libcdsprpc.so": "",
    }
)
CONTAINER = (
    x86(8)
    | memory(64000, 50000)
    | {
        "proc/self/cgroup": "0::/pod/app\n",
        "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/pod/app/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pod/memory.max": f"{2 << 30}\n",
        "sys/fs/cgroup/pod/memory.current": f"{812 << 20}\n",
        "sys/fs/cgroup/pod/memory.stat": f"anon 1\nfile 5\ninactive_file {300 << 20}\nactive_file 5\n",
        "sys/fs/cgroup/pod/app/memory.max": "max\n",
    }
)
OLD_CONTAINER = (
    x86(8)
    | memory(64000, 50000)
    | {
        "proc/self/cgroup": "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n1:name=systemd:/x\n0::/\n",
        "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{1 << 30}\n",
        "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": f"{1 << 29}\n",
    }
)
THREADED = x86(8, siblings={n: f"{n % 4},{n % 4 + 4}" for n in range(8)}) | memory(16000, 12000)
HYBRID = x86(6, siblings={0: "0-1", 1: "0-1"}, khz=[5_200_000] * 2 + [3_900_000] * 4) | memory(16000, 12000)
BOOSTED = x86(4, khz=[5_759_000, 5_606_000, 5_450_000, 5_300_000]) | memory(16000, 12000)


def write(root: Path, files: Files, links: dict[str, str] | None = None) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, to in (links or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(to)
    return root
