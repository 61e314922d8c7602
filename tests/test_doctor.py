"""`sampan doctor`, and the threads that the cpu target takes, on machines that are small trees of files."""

from __future__ import annotations

import json
import os
import random
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner, Result
from conftest import to_gguf
from machines import (
    A55,
    BOOSTED,
    CONTAINER,
    CPU,
    HYBRID,
    OLD_CONTAINER,
    PHONE,
    PI5,
    RK3588,
    THREADED,
    V9,
    Files,
    arm,
    write,
    x86,
)
from onnx_peer import to_onnx

from sampan import runtime
from sampan.cli import cli
from sampan.cli.doctor import _page
from sampan.errors import InputError
from sampan.runtime import doctor
from sampan.runtime.machine import Machine, cores_of, look, memory, quota
from sampan.runtime.processor import processor
from sampan.runtime.targets import cpu

ARM_BUILD = {"llama": {"name": "llama.cpp", "version": "1", "compiled_for": ["NEON", "DOTPROD", "FP16_VA", "KLEIDIAI"]}}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("doctor")
    to_gguf(tiny.FIXTURE, out / "m.gguf", "q8_0")
    return {"gguf": out / "m.gguf", "onnx": to_onnx(tiny.FIXTURE, out / "onnx", "int8").artifact}


def machine(root: Path, files: Files, architecture: str = "aarch64", **links: dict[str, str]) -> Machine:
    return look(write(root, files, **links), architecture)


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    found = doctor.examine(machine(tmp_path, PI5), ARM_BUILD)
    assert found["device"] == "Raspberry Pi 5 Model B Rev 1.0"
    cpu = found["processor"]
    assert (cpu["name"], cpu["features"], cpu["threads"]) == ("Cortex-A76", ["fp16", "dotprod"], 4)
    assert cpu["cores"] == [{"name": "Cortex-A76", "numbers": [0, 1, 2, 3], "speed": 2400000, "computes": True}]
    assert found["memory"] == {"total": 8064 << 20, "available": 7200 << 20, "limit": None, "swap": None}
    assert found["npus"] == [] and found["advice"] == []
    assert 6.0e9 < found["room"]["weights"] < 7.0e9 and 9 < found["room"]["billions_at_int4"] < 12


def test_an_rk3588(tmp_path: Path) -> None:
    found = doctor.examine(machine(tmp_path, RK3588), ARM_BUILD)
    cpu = found["processor"]
    assert [(c["name"], c["numbers"], c["computes"]) for c in cpu["cores"]] == [
        ("Cortex-A55", [0, 1, 2, 3], False),
        ("Cortex-A76", [4, 5, 6, 7], True),
    ]
    assert cpu["threads"] == 4
    (npu,) = found["npus"]
    assert npu["summary"] == "Rockchip NPU; driver RKNPU v0.9.8; fdab0000.npu; /usr/lib/librkllmrt.so"
    assert npu["chip"] == npu["target"].upper() == "RK3588"
    assert npu["needs"][-1] == "a folder of `sampan convert --to onnx --target rk3588`"
    assert found["targets"]["rk3588"]["found"] == ["rockchip,rk3588"] and not found["targets"]["rk3576"]["found"]
    assert any("`taskset -c 4,5,6,7 sampan …`" in line for line in found["advice"])


def test_an_rk3588_with_the_driver_of_linux(tmp_path: Path) -> None:
    files = {k: v for k, v in RK3588.items() if "RKNPU" not in k and "rknpu" not in k}
    files |= {
        "sys/bus/platform/drivers/rocket/fdab0000.npu": "",
        "dev/accel/accel0": "",
        "sys/class/accel/accel0/uevent": "",
    }
    links = {"sys/class/accel/accel0/device/driver": "../../../bus/platform/drivers/rocket"}
    found = doctor.examine(machine(tmp_path, files, links=links), {})
    assert [n["summary"] for n in found["npus"]] == ["Rockchip NPU; driver rocket; /dev/accel/accel0"]
    assert found["npus"][0]["needs"] == ["a target of sampan, which has none for it"]


def test_an_npu_without_a_driver(tmp_path: Path) -> None:
    files = {k: v for k, v in RK3588.items() if "rknpu" not in k.lower() and "librk" not in k}
    found = doctor.examine(machine(tmp_path, files), {})
    assert [n["summary"] for n in found["npus"]] == ["Rockchip NPU; no driver"]
    assert found["npus"][0]["needs"][0] == "a kernel with its driver"


def test_an_npu_that_nothing_is_for(tmp_path: Path) -> None:
    files = PI5 | {"dev/accel/accel0": "", "sys/class/accel/accel0/uevent": ""}
    links = {"sys/class/accel/accel0/device/driver": "../../../bus/platform/drivers/ethosu"}
    (npu,) = doctor.examine(machine(tmp_path, files, links=links), {})["npus"]
    assert npu["needs"] == ["a target of sampan, which has none for it"]


def test_a_snapdragon_phone(tmp_path: Path) -> None:
    found = doctor.examine(machine(tmp_path, PHONE), ARM_BUILD)
    cpu = found["processor"]
    assert cpu["threads"] == 5, "the middle cores are near the fastest"
    assert cpu["features"] == ["fp16", "dotprod", "i8mm", "bf16", "sve", "sve2"]
    (npu,) = found["npus"]
    assert npu["summary"] == (
        "Qualcomm Hexagon NPU of SM8550, cdsp running; driver fastrpc; /dev/fastrpc-cdsp, /dev/fastrpc-cdsp-secure; "
        "/vendor/lib64/libcdsprpc.so"
    )
    assert npu["needs"][-1] == "a folder of `sampan convert --to onnx --target qnn-v73`", "by the chip, in devices/"
    assert ('pip install "sampan[qnn]"' in npu["needs"]) == (find_spec("onnxruntime_qnn") is None)
    assert any(line.startswith("llama.cpp was compiled without i8mm,") for line in found["advice"])
    assert not any("KleidiAI" in line for line in found["advice"])


def test_cores_of_one_part_are_big_ones_at_two_frequencies(tmp_path: Path) -> None:
    """Of a Snapdragon 8 Elite, whose eight cores are Oryons; and of one part beside little cores."""
    (a, b, c) = (tmp_path / n for n in "abc")
    elite = [("0x001", V9, 3_532_800)] * 6 + [("0x001", V9, 4_320_000)] * 2
    files = arm(elite, speed="cpufreq/cpuinfo_max_freq")
    files["proc/cpuinfo"] = files["proc/cpuinfo"].replace("0x41", "0x51")
    found = processor(machine(a, files))
    assert found.name == "Oryon" and found.threads == 8
    phone = [("0xd80", V9, 300)] * 2 + [("0xd81", V9, 500)] * 4 + [("0xd81", V9, 800)] * 2
    assert processor(machine(b, arm(phone))).threads == 6, "the little cores' part is another"
    assert processor(machine(c, arm([("0xd05", A55, 250)] * 4 + [("0xd05", A55, 1024)] * 4))).threads == 4


def test_a_feature_counts_where_every_core_has_it(tmp_path: Path) -> None:
    files = arm([("0xd05", "asimddp", 300), ("0xd4e", "asimddp i8mm", 1024)])
    assert processor(machine(tmp_path, files)).features == ("dotprod",)


@pytest.mark.parametrize(
    ("files", "cores", "bound", "available"),
    [(CONTAINER, 2.5, 2 << 30, 1536 << 20), (OLD_CONTAINER, 0.5, 1 << 30, 1 << 29)],
)
def test_a_container(tmp_path: Path, files: Files, cores: float, bound: int, available: int) -> None:
    m = machine(tmp_path, files, "x86_64")
    assert quota(m) == cores and processor(m).threads == max(1, int(cores))
    held = memory(m)
    assert (held.total, held.limit, held.available) == (64000 << 20, bound, available)
    said = doctor.examine(m, {})["advice"]
    assert any(f"{cores:g} cores' time" in line for line in said) and any("limits memory" in line for line in said)


def test_a_path_of_a_control_group_leads_nowhere_else(tmp_path: Path) -> None:
    """/proc/self/cgroup begins with /.. where the group lies outside of the namespace."""
    files = x86(4) | {"proc/self/cgroup": "0::/../../../outside\n", "outside/cpu.max": "100000 100000\n"}
    assert quota(machine(tmp_path, files)) is None


def test_physical_cores_count(tmp_path: Path) -> None:
    (a, b, c) = (tmp_path / n for n in "abc")
    assert processor(machine(a, THREADED, "x86_64")).threads == 4
    hybrid = processor(machine(b, HYBRID, "x86_64"))
    assert hybrid.threads == 1 and [x.number for x in hybrid.fast] == [0, 1]
    assert processor(machine(c, BOOSTED, "x86_64")).threads == 4, "one boosts higher than the other"
    assert processor(machine(c, {}, "x86_64")).features == ("avx2", "fma", "f16c", "avx512", "avx512_vnni", "amx_int8")


def test_the_cores_that_a_process_may_use(tmp_path: Path) -> None:
    files = RK3588 | {"proc/self/status": "Cpus_allowed_list:\t2-5\n"}
    found = doctor.examine(machine(tmp_path, files), {})
    assert found["processor"]["threads"] == 2 and any("may use 4 of 8 cores" in line for line in found["advice"])
    (tmp_path / "proc/self/status").write_text("Cpus_allowed_list:\t0-3\n")
    assert processor(look(tmp_path)).threads == 4, "little cores alone are alike"
    (tmp_path / CPU / "online").write_text("0-1\n")
    assert look(tmp_path).allowed == (0, 1)


def test_speeds_that_not_every_core_tells(tmp_path: Path) -> None:
    """A phone may hide some: then frequencies decide, and without them all cores count."""
    root = write(tmp_path, PHONE)
    (root / CPU / "cpu0/cpu_capacity").unlink()
    assert processor(look(root)).threads == 8
    for n, khz in enumerate([2_016_000] * 3 + [2_803_000] * 4 + [3_360_000]):
        write(root, {f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq": f"{khz}\n"})
    assert processor(look(root)).threads == 5


def test_frequencies_that_stay_low(tmp_path: Path) -> None:
    governors = {f"{CPU}/cpu{n}/cpufreq/scaling_governor": "powersave\n" for n in range(2)}
    m = machine(tmp_path, PI5 | governors)
    (line,) = doctor.examine(m, ARM_BUILD)["advice"]
    assert line.startswith("cores 0, 1 run by the governor powersave")
    write(tmp_path, {f"{CPU}/cpu{n}/cpufreq/scaling_driver": "intel_pstate\n" for n in range(2)})
    assert doctor.examine(m, ARM_BUILD)["advice"] == []


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = doctor.examine(look(tmp_path, "arm64"), {})
    assert found["processor"] | {"cores": []} == {
        "architecture": "arm64", "name": "", "features": [], "cores": [], "quota": None, "threads": 1
    }  # fmt: skip
    assert found["room"] is None and found["npus"] == [] and found["advice"] == []
    assert "not told" in _page(found)


def test_lists_of_cores() -> None:
    assert cores_of("0-3,8\n") == [0, 1, 2, 3, 8] and cores_of("") == [] and cores_of("3-1,x,-2,1-") == []
    assert len(cores_of("0-9999")) == 4097 and cores_of("0-99999999999") == []


@pytest.mark.slow
def test_odd_files_never_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in turn is garbage, of another kind, or gone."""
    monkeypatch.setattr(doctor, "extras", dict)  # they lie elsewhere, and looking for packages takes long
    rng, seen = random.Random(0), 0
    odd = [b"", b"\xff\xfe\0", b"-1\n", b"9" * 400, b"\x1b[2J\n\n:\n: :\nprocessor: 99999\n", b"0::/" + b"a/" * 3000]
    for k, files in enumerate((PI5, RK3588, PHONE, CONTAINER, OLD_CONTAINER)):
        root = write(tmp_path / str(k), files)
        for name in files:
            if re.search(r"/cpu[1-6]/", name):
                continue  # as the first and the last one
            path, kept = root / name, (root / name).read_bytes()
            for value in [*odd, rng.randbytes(200), "fifo", "folder", "gone"]:
                path.unlink()
                if isinstance(value, bytes):
                    path.write_bytes(value)
                elif value == "fifo":
                    os.mkfifo(path)
                elif value == "folder":
                    path.mkdir()
                found = doctor.examine(look(root, "aarch64"), {})
                assert 1 <= found["processor"]["threads"] <= 8
                json.dumps(found, allow_nan=False)
                assert all(c.isprintable() or c == "\n" for c in _page(found))
                seen += 1
                if value == "folder":
                    path.rmdir()
                    path.write_bytes(kept)
                elif value == "gone":
                    path.write_bytes(kept)
    assert seen > 400


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments], catch_exceptions=False)


def test_the_page_escapes_what_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = machine(tmp_path, RK3588 | {"proc/device-tree/model": "A\x1b[31m\nroom  forged\0"})
    monkeypatch.setattr("sampan.runtime.machine.look", lambda: m)
    monkeypatch.setattr(doctor, "probe", dict)
    out = ask().stdout
    assert "A\\x1b[31m\\nroom  forged" in out and "\x1b" not in out
    assert re.search(r"^cores +4 × Cortex-A55 \(0, 1, 2, 3\): slower, not counted$", out, re.MULTILINE)
    assert json.loads(ask("--json").stdout)["device"] == "A\x1b[31m\nroom  forged"


def test_this_machine() -> None:
    found = json.loads(ask("--json").stdout)
    allowed = sorted(os.sched_getaffinity(0))
    assert sorted(n for kind in found["processor"]["cores"] for n in kind["numbers"]) == allowed
    assert found["memory"]["total"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["engines"]["llama"]["version"] == metadata.version("llama-cpp-python")
    assert found["engines"]["onnx"]["version"] == metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in found["engines"]["onnx"]["providers"]
    assert found["extras"]["gguf"]["install"] is None
    assert set(found["extras"]) == set(metadata.metadata("sampan").get_all("Provides-Extra")) - {"test", "lint"}
    assert found["targets"]["cpu"]["found"]


@pytest.mark.slow
def test_engines_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    start = doctor.start

    def before(code: str) -> None:
        monkeypatch.setattr(doctor, "start", lambda own, **k: start(f"{code}; {own}", **k))

    before("import sys; sys.modules.update(llama_cpp=None, onnxruntime=None)")
    found = doctor.probe()
    assert found["llama"] == {
        "name": "llama.cpp", "error": "llama_cpp is not installed", "install": 'pip install "sampan[gguf]"'
    }  # fmt: skip
    assert found["onnx"]["install"] == 'pip install "sampan[onnx]"'
    before("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert doctor.probe()["llama"] == {"error": "its process ended by SIGILL"}
    before("import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    assert doctor.probe()["onnx"] == {"error": "it did not load within 0 s"}


def test_a_model_fits_or_not(artifacts: dict[str, Path], tmp_path: Path) -> None:
    m, model = machine(tmp_path, PI5), artifacts["gguf"]
    found = doctor.examine(m, {}, model)
    assert found["model"]["fits"] is True and "it fits" in _page(found)
    write(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"})
    found = doctor.examine(m, {}, model)
    assert found["model"]["fits"] is False and "does NOT fit" in _page(found)
    assert found["room"]["weights"] == 0 and "too little memory" in _page(found)
    with pytest.raises(InputError):
        doctor.examine(m, {}, artifacts["onnx"])


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_the_cpu_target_chooses_threads(
    name: str, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine itself says: llama_n_threads, and the pool that ONNX Runtime was asked for."""
    m = machine(tmp_path, PHONE)
    monkeypatch.setattr(cpu, "look", lambda: m)
    for options, threads in ((None, 5), (runtime.EngineOptions(threads=3), 3)):
        with runtime.open(artifacts[name], options) as session:
            assert session._engine.threads == threads
    with pytest.raises(InputError, match=r"target: expected one of cpu.*, found 'gpu'"):
        runtime.open(artifacts[name], target="gpu")
