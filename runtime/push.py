"""Bring a GGUF file onto a phone, into the folder of the demo app, and prove that it arrived.

The bytes go through `adb shell` into an unfinished file, which is continued where it stopped; it gets its name when the
phone has computed the same SHA-256. Paths on the phone are quoted for its shell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from sampan.child import ended, start
from sampan.errors import InputError, UnfinishedError, brief, wrong
from sampan.files import size_of
from sampan.units import human

from .adb import SECONDS, Device
from .memory import Need

APPLICATION = "org.sampan.demo"
FILES = f"/sdcard/Android/data/{APPLICATION}/files"
UNFINISHED = ".unfinished"
LONGEST = 255 - len(UNFINISHED)  # bytes of a file name
ABI = "arm64-v8a"
CHUNK = 1 << 20
SYSTEM = 512 << 20  # bytes of memory, or a quarter of all, that the system keeps; the app leaves it as much
SLOWEST = 10_000_000  # bytes a second that a phone hashes at least
OPENING = 600  # seconds that llama.cpp may take for the vocabulary here


@dataclass(frozen=True, slots=True)
class Phone:
    """What a phone said: bytes of memory in all and available now, of free space, and where the app's programs lie."""

    memory: int
    available: int
    free: int
    programs: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file that is to be at `target`: `start` of its `size` bytes are there, or all of them under that name (`done`).

    `digest` has taken in the bytes before `start`.
    """

    model: Path
    target: str
    size: int
    start: int
    digest: Any
    done: bool = False

    @property
    def unfinished(self) -> str:
        return self.target + UNFINISHED


def check(model: Path) -> None:
    """Let llama.cpp open the vocabulary and every tensor's place, in a child; InputError where it refuses the file."""
    size_of(model)
    code = "from sampan.runtime.trial import main; main()"
    with tempfile.TemporaryFile() as errors, start(
        code, str(model.absolute()), str(OPENING), stderr=errors, GGML_NO_BACKTRACE="1"
    ) as child:  # fmt: skip
        assert child.stdout is not None  # noqa: S101 - it is a pipe
        said: dict[str, Any] = {}
        for line in child.stdout:
            said |= json.loads(line)
        child.wait()
        errors.seek(0)
        if "absent" not in said and "opened" not in said:
            reason = said.get("refused") or ended(child.returncode, errors.read().decode(errors="replace"))
            raise InputError(f"{model}: llama.cpp cannot open it, so nothing was pushed: {brief(reason, 300)}")


def look(device: Device) -> Phone:
    """Ask a phone what a push needs to know; InputError where it is none for the app."""
    serial = device.serial
    abis = device.ask("getprop ro.product.cpu.abilist").strip()
    if ABI not in abis.split(","):
        raise wrong(serial, f"a device that runs {ABI} programs", brief(abis) or "none named", "the app has no others")
    apk = re.search(r"^package:(/.+)/base\.apk$", device.ask(f"pm path {APPLICATION}; true"), re.MULTILINE)
    if not apk:
        raise wrong(serial, f"the app {APPLICATION}", "no such app", "install it with `adb install` and start it once")
    # its system makes this folder at the first start, with the rights that the app needs; one of ours would lack them
    if device.ask(f"test -d {FILES} && echo there; true").strip() != "there":
        raise wrong(serial, f"the app's folder {FILES}", "none", "start the app once on the device")
    memory = dict(re.findall(r"^(\w+): +(\d+) kB$", device.ask("cat /proc/meminfo"), re.MULTILINE))
    space = re.fullmatch(r"(\d+) (\d+)", device.ask(f"stat -f -c '%a %S' {FILES}").strip())
    if not space or not {"MemTotal", "MemAvailable"} <= memory.keys():
        raise InputError(f"{serial}: its memory or its free space cannot be read; is it Android 8 or newer?")
    total, available = (1024 * int(memory[k]) for k in ("MemTotal", "MemAvailable"))
    return Phone(total, available, int(space[1]) * int(space[2]), f"{apk[1]}/lib/arm64")


def fits(device: Device, phone: Phone, model: Path, need: Need) -> str:
    """InputError for a model that the phone's memory never holds; a warning where other apps are in the way now."""
    parts = (
        f"weights {human(need.weights)}, cache {human(need.cache)} at {need.context} tokens, rest {human(need.margin)}"
    )
    limit = max(0, phone.memory - max(phone.memory // 4, SYSTEM))
    if need.total > limit:
        raise wrong(
            f"{device.serial}: memory", f"{human(need.total)} for {model.name} ({parts})",
            f"{human(limit)} beside the system's, of {human(phone.memory)}", "choose a smaller --quant or --context",
        )  # fmt: skip
    if need.total > phone.available:
        free = f"of {human(phone.memory)} only {human(phone.available)} is free now"
        return f"{device.serial}: {model.name} needs {human(need.total)} of memory ({parts}), {free}: close other apps"
    return ""


def prepare(device: Device, phone: Phone, model: Path, overwrite: bool = False) -> Transfer:
    """See what of the file is there already. An unfinished file of other bytes is removed."""
    size, serial = size_of(model), device.serial
    target = f"{FILES}/models/{_name(model)}"
    device.ask(f"mkdir -p {FILES}/models")
    there = _size(device, target)
    if there == size and _hash(device, target, size) == (whole := _prefix(model, size)).hexdigest():
        return Transfer(model, target, size, size, whole, done=True)
    if there is not None and not overwrite:
        found = f"another file of {there} bytes"
        raise wrong(f"{serial}: {brief(target)}", "no file of that name", found, "use --overwrite to replace it")
    begun, digest, unfinished, free = _size(device, target + UNFINISHED), hashlib.sha256(), 0, phone.free
    if begun is not None:
        if (
            0 < begun <= size
            and _hash(device, target + UNFINISHED, begun) == (old := _prefix(model, begun)).hexdigest()
        ):
            unfinished, digest = begun, old
        else:
            device.ask(f"rm -f {quote(target + UNFINISHED)}")
            free += begun
    if size - unfinished > free:
        raise wrong(f"{serial}: {FILES}", f"{human(size - unfinished)} of free space", human(free), "make room on it")
    return Transfer(model, target, size, unfinished, digest)


def send(device: Device, transfer: Transfer, progress: Callable[[int], None]) -> None:
    """Stream the bytes that are missing. UnfinishedError where that is interrupted; the next goes on from there."""
    left = transfer.size - transfer.start
    with transfer.model.open("rb") as file, device.feed(f"cat >> {quote(transfer.unfinished)}") as sink:
        file.seek(transfer.start)
        while left and (chunk := file.read(min(CHUNK, left))):
            sink.write(chunk)
            transfer.digest.update(chunk)
            left -= len(chunk)
            progress(len(chunk))
    if (found := _size(device, transfer.unfinished)) != transfer.size:
        raise UnfinishedError(
            f"{device.serial}: {brief(transfer.unfinished)}: expected {transfer.size} bytes, found {found}; run the "
            "same command again to continue"
        )


def finish(device: Device, transfer: Transfer) -> str:
    """Compare the hash and give the file its name; returns the SHA-256 that the phone computed."""
    expected = transfer.digest.hexdigest()
    found = _hash(device, transfer.unfinished, transfer.size)
    if found != expected:
        device.ask(f"rm -f {quote(transfer.unfinished)}")
        hint = "what had arrived was removed; push again, with another cable if it happens again"
        raise wrong(f"{device.serial}: {brief(transfer.target)}", f"SHA-256 {expected}", brief(found), hint)
    move = f"sync && mv -f {quote(transfer.unfinished)} {quote(transfer.target)}"
    device.ask(move, seconds=SECONDS + transfer.size / SLOWEST)
    return found


def _name(model: Path) -> str:
    """The file's name, where Android's file systems and the app take it."""
    name = model.name
    if not name.endswith(".gguf"):
        raise wrong(model, "a file named *.gguf, which the app lists", brief(name), "rename it")
    if not name.isprintable() or re.search(r'["*/:<>?\\|]', name) or len(os.fsencode(name)) > LONGEST:
        raise wrong(
            model, f'a name of at most {LONGEST} bytes without control characters and any of "*/:<>?\\|',
            brief(name), "rename it",
        )  # fmt: skip
    return name


def _size(device: Device, path: str) -> int | None:
    said = device.ask(f"stat -c %s {quote(path)} 2>/dev/null; true").strip()
    return int(said) if re.fullmatch(r"\d{1,18}", said) else None


def _hash(device: Device, path: str, size: int) -> str:
    """SHA-256 of a file as the phone computes it; of its content alone, so that its name is in no output."""
    return device.ask(f"sha256sum < {quote(path)}", seconds=SECONDS + size / SLOWEST).split(" ")[0]


def _prefix(model: Path, length: int) -> Any:
    """The SHA-256 object of the first bytes of a file."""
    digest = hashlib.sha256()
    with model.open("rb") as file:
        while length and (chunk := file.read(min(CHUNK, length))):
            digest.update(chunk)
            length -= len(chunk)
    return digest
