"""What is known of a device: its memory, its cores, its NPU. Every number comes with its source; what is not known is
None, and its source says why.
"""

from __future__ import annotations

import difflib
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampan.errors import brief, wrong
from sampan.files import read_json

from .machine import Machine, look, memory
from .processor import processor

FOLDER = Path(__file__).with_name("devices")
HERE = "this machine"
READ, SECONDS, LEAST = 512 << 20, 0.5, 2 << 30  # bytes that are read, for how long, and what must be available for it


@dataclass(frozen=True, slots=True)
class Number:
    """A value, None where it is not known, and where it comes from."""

    value: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores that are alike. `computes`: whether they are worth a thread; `operations`: multiplications and additions of
    8-bit integers in a cycle of one core.
    """

    name: str
    count: int
    computes: bool
    gigahertz: float
    operations: float | None
    features: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Npu:
    """`target` is what `--target` calls it, None where sampan has none. `tops`: 10¹² operations a second as the maker
    says; `reached`: those that a published prefill reached; `session`: bytes that one process can map there.
    """

    name: str
    target: str | None
    chips: tuple[str, ...]
    tops: Number
    reached: Number
    session: Number


@dataclass(frozen=True, slots=True)
class Device:
    """`memory` in bytes, `usable` as a share of it, `bandwidth` in bytes a second; `measured`: by reading, here."""

    id: str
    name: str
    aliases: tuple[str, ...]
    memory: Number
    usable: Number
    bandwidth: Number
    cores: tuple[Cores, ...]
    npu: Npu | None
    notes: tuple[str, ...]
    measured: bool = False

    @property
    def room(self) -> int | None:
        """Bytes that a model may take."""
        known = self.memory.value is not None and self.usable.value is not None
        return int(self.memory.value * self.usable.value) if known else None  # type: ignore[operator]

    @property
    def computing(self) -> tuple[Cores, ...]:
        """The cores that compute."""
        return tuple(c for c in self.cores if c.computes)

    @property
    def peak(self) -> float | None:
        """Operations a second of all cores that compute."""
        each = [c.operations and c.count * c.gigahertz * 1e9 * c.operations for c in self.computing]
        return None if not each or not all(each) else float(sum(e for e in each if e))


def names() -> list[str]:
    """The devices, sorted."""
    return sorted(p.stem for p in FOLDER.glob("*.json"))


def find(name: str) -> Device:
    """The device of a name or an alias, in whatever case."""
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    devices = [read(n) for n in names()]
    for device in devices:
        if wanted in (device.id, *device.aliases):
            return device
    known = [n for d in devices for n in (d.id, *d.aliases)]
    near = difflib.get_close_matches(wanted, known, 3, 0.5) or names()[:3]
    expected = f"one of {len(devices)} devices, such as {', '.join(near)}"
    raise wrong("--device", expected, brief(repr(name)), "`sampan plan --devices` lists them")


def read(name: str) -> Device:
    """The device of a file; InputError where the file says something else than docs/adding.md."""
    path = FOLDER / f"{name}.json"
    return parse(name, read_json(path), str(path))


def parse(name: str, data: Any, where: str) -> Device:
    """A device from what its file holds."""
    top = _Fields(data, where)
    npu = top.take("npu", dict, None)
    device = Device(
        name,
        top.text("name"),
        tuple(top.texts("aliases")),
        top.number("memory", 2**30),
        top.number("usable"),
        top.number("bandwidth", 1e9),
        tuple(_cores(_Fields(c, f"{where}: cores")) for c in top.take("cores", list)),
        None if npu is None else _npu(_Fields(npu, f"{where}: npu")),
        tuple(top.texts("notes")),
    )
    top.done()
    return device


def _cores(fields: _Fields) -> Cores:
    count, rate, operations = (fields.value(k) for k in ("count", "gigahertz", "operations"))
    if count is None or rate is None:
        raise wrong(f"{fields.where}: count, gigahertz", "numbers", "none")
    found = Cores(
        fields.text("name"),
        int(count),
        fields.take("computes", bool),
        rate,
        operations,
        tuple(fields.texts("features")),
        fields.text("source"),
    )
    fields.done()
    return found


def _npu(fields: _Fields) -> Npu:
    found = Npu(
        fields.text("name"),
        fields.take("target", str, None),
        tuple(fields.texts("chips")),
        fields.number("tops", 1e12),
        fields.number("reached", 1e12),
        fields.number("session", 1e9),
    )
    fields.done()
    return found


class _Fields:
    """An object of a device's file; every key must be asked for."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise wrong(where, "an object", brief(data))
        self.where, self._left = where, dict(data)

    def take(self, key: str, kind: type, *default: Any) -> Any:
        """A value of a type; null is the default, where there is one."""
        if key not in self._left:
            raise wrong(f"{self.where}: {key}", f"a {kind.__name__}", "none")
        value = self._left.pop(key)
        if value is None and default:
            return default[0]
        if type(value) is not kind:
            raise wrong(f"{self.where}: {key}", f"a {kind.__name__}", brief(value))
        return value

    def text(self, key: str) -> str:
        text: str = self.take(key, str)
        if not text.strip():
            raise wrong(f"{self.where}: {key}", "some words", "none")
        return text

    def texts(self, key: str) -> list[str]:
        found = self.take(key, list)
        if not all(isinstance(t, str) and t for t in found):
            raise wrong(f"{self.where}: {key}", "a list of texts", brief(found))
        return list(found)

    def value(self, key: str) -> float | None:
        """A number above 0, or null."""
        found = self._left.pop(key, "none")
        if found is not None and (type(found) not in (int, float) or not 0 < found < 1e9):
            raise wrong(f"{self.where}: {key}", "a number above 0, or null", brief(found))
        return None if found is None else float(found)

    def number(self, key: str, unit: float = 1) -> Number:
        """An object of `value` and `source`."""
        fields = _Fields(self.take(key, dict), f"{self.where}: {key}")
        value, source = fields.value("value"), fields.text("source")
        fields.done()
        return Number(None if value is None else value * unit, source)

    def done(self) -> None:
        if self._left:
            raise wrong(self.where, "keys that are known", brief(", ".join(self._left)))


def here(machine: Machine | None = None) -> Device:
    """This machine as `sampan doctor` finds it; the bandwidth is measured by reading."""
    machine = machine or look()
    cpu, held = processor(machine), memory(machine)
    rate = bandwidth(cpu.threads, held.available)
    said = "measured: reading memory with as many threads as compute"
    notes = ["prefill is not predicted for this machine: `sampan bench` measures it"]
    load = re.match(r"(\d{1,6}\.\d+) ", machine.text("/proc/loadavg"))
    if load and float(load[1]) > len(cpu.cores) / 4:
        notes.append(
            f"other programs compute here, a load of {load[1]} on {len(cpu.cores)} cores: it may be far slower"
        )
    return Device(
        HERE, cpu.name or machine.architecture, (),
        Number(held.available, "available now, as `sampan doctor` says"),
        Number(1.0, "what is available is free for a model"),
        Number(rate, said if rate else "not measured: less than 2 GiB are available"),
        (), None, tuple(notes), measured=True,
    )  # fmt: skip


def bandwidth(threads: int, available: int | None) -> float | None:
    """Bytes a second that so many threads read from memory; None where too little is available to try."""
    if available is not None and available < LEAST:
        return None
    arrays = np.ones((threads, READ // threads // 8), np.uint64)
    counts = [0] * threads
    start = time.perf_counter()

    def work(n: int) -> None:
        while time.perf_counter() - start < SECONDS:
            arrays[n].max()
            counts[n] += 1

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return float(sum(counts) * arrays[0].nbytes / (time.perf_counter() - start))
