"""Android's adb client: find the one device, run a script in its shell, stream bytes into one."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sampan.child import asked, ended, tool
from sampan.errors import InputError, UnfinishedError, brief, wrong

SECONDS = 30.0  # the longest that a device may take for a short answer
STATES = {
    "unauthorized": "unlock it and allow this computer in the dialogue that it shows",
    "authorizing": "unlock it and allow this computer in the dialogue that it shows",
    "offline": "plug it in again, or run `adb reconnect`",
    "no permissions": "this user may not open USB devices; apt-get install android-sdk-platform-tools-common",
    "recovery": "start it into Android",
    "sideload": "start it into Android",
    "bootloader": "start it into Android",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One device that answers: the path of adb, and the serial number that adb lists."""

    adb: str
    serial: str

    def ask(self, script: str, seconds: float = SECONDS) -> str:
        """What a script prints in the device's shell; InputError where it fails, UnfinishedError without an answer."""
        try:
            # adb ends with 0 when the connection is lost, so the script itself says that it came to its end
            code, out, err = asked(*self._shell(f"{script}; echo ended $?"), seconds=seconds)
        except TimeoutError:
            raise UnfinishedError(f"{self.serial}: no answer within {seconds:.0f} s; is it still connected?") from None
        said = re.fullmatch(r"(.*?)ended (\d+)\n", out, re.DOTALL)
        if code or said is None:
            raise UnfinishedError(
                f"{self.serial}: adb {ended(code, err)}, before an answer came; is it still connected?"
            )
        if said[2] != "0":
            raise InputError(f"{self.serial}: {brief(script)} {ended(int(said[2]), err)}")
        return said[1]

    @contextmanager
    def feed(self, script: str) -> Iterator[IO[bytes]]:
        """The standard input of a script in the device's shell; leaving the block waits for its end.

        Raises UnfinishedError where the script fails or the connection ends.
        """
        with tempfile.TemporaryFile() as said, tool(
            *self._shell(script), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
        ) as process:  # fmt: skip
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            try:
                yield process.stdin
                process.stdin.close()
            except BrokenPipeError:  # adb has ended, and says why
                release(process)
            except BaseException:
                process.kill()
                release(process)
                raise
            code = process.wait()
            said.seek(0)
            if code:
                reason = ended(code, said.read().decode(errors="replace"))
                raise UnfinishedError(f"{self.serial}: adb {reason}; run the same command again to continue")

    def start(self, script: str, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        """A script in the device's shell, with pipes to its standard input and output."""
        return tool(*self._shell(script), stdin=subprocess.PIPE, stderr=stderr)

    def _shell(self, script: str) -> tuple[str, ...]:
        return self.adb, "-s", self.serial, "shell", "-T", script


def release(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe to a process that does not read it any more; what waits in it goes nowhere."""
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    with suppress(BrokenPipeError):
        process.stdin.close()


def find(serial: str | None = None) -> Device:
    """The one device that is connected, or that with the serial number; InputError says what to do otherwise."""
    adb = shutil.which("adb")
    if adb is None or not Path(adb).is_absolute():  # one in the working directory may be a stranger's
        raise InputError("adb: not found; apt-get install adb, or put Android's platform-tools into PATH")
    try:
        code, out, err = asked(adb, "devices", seconds=SECONDS)
    except TimeoutError:
        raise InputError(f"adb: `adb devices` did not answer within {SECONDS:.0f} s; try `adb kill-server`") from None
    if code:
        raise InputError(f"adb: `adb devices` {ended(code, err)}")
    found = dict(line.split("\t", 1) for line in out.splitlines() if "\t" in line)
    listed = brief(", ".join(f"{name} ({state})" for name, state in found.items()), 300) or "none"
    if serial is not None:
        if serial not in found:
            raise wrong("--serial", "a device that adb lists", f"{brief(serial)}", f"connected: {listed}")
    elif not found:
        raise wrong("adb", "one device", "none", "connect a phone, turn on USB debugging in its developer options")
    elif len(found) > 1:
        raise wrong("adb", "one device", listed, "choose one with --serial")
    else:
        serial = next(iter(found))
    if (state := found[serial]) != "device":
        known = (hint for name, hint in STATES.items() if state.startswith(name))
        raise wrong(f"{brief(serial)}", "a device that is ready", brief(state), next(known, ""))
    return Device(adb, serial)
