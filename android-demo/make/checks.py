"""What must hold for a finished APK; each check raises BuildError with what is wrong."""

from __future__ import annotations

import re
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from package import MIN_API, STORED, TARGET_API, android_jar, badging
from tools import BuildError, run

PAGE = 0x4000  # bytes: Android's largest pages
LOAD, INTERP, AARCH64, DYNAMIC_FILE = 1, 3, 183, 3  # of elf.h
USE = re.compile(r"(?:invoke-\S+ \{[^}]*\}|[is](?:get|put)\S* [^L\[]*), \[*L([^;]+);\.(\S+)")
SDK = ("android/os/Build$VERSION", "SDK_INT:I")
LEAST = Path(__file__).with_name("api26.txt")
MOST_WITHOUT_MODEL = 8_000_000  # bytes
# constant pool entries of a class file by tag, in bytes after it (Java Virtual Machine Specification, table 4.4-A)
POOL = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}


class Members(NamedTuple):
    """What a class has itself, and whom it has more from."""

    parents: list[str]
    own: set[str]  # name:descriptor


def apk(path: Path) -> list[str]:
    """Every check; returns what held, a line each."""
    return [signature(path), manifest(path), alignment(path), programs(path), calls(path), size(path)]


def signature(path: Path) -> str:
    said = run("apksigner", "verify", "--min-sdk-version", str(MIN_API), "--verbose", path)
    for scheme in ("v2", "v3"):
        if not re.search(rf"^Verified using {scheme} scheme .*: true$", said, re.M):
            raise BuildError(f"{path}: apksigner does not verify it by scheme {scheme}")
    return "signature: schemes v2 and v3 verify"


def manifest(path: Path) -> str:
    said = badging(path)
    for line in (
        f"sdkVersion:'{MIN_API}'",
        f"targetSdkVersion:'{TARGET_API}'",
        "native-code: 'arm64-v8a'",
        "launchable-activity:",
    ):
        if line not in said:
            raise BuildError(f"{path}: aapt2's badging has no {line}")
    if asked := re.findall(r"uses-permission\S* name='([^']+)'", said):
        raise BuildError(f"{path}: it asks for the permission {asked[0]}; it needs none")
    tree = run("aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", path)
    if not re.search(r"extractNativeLibs\S*=(true|\S*0xffffffff)", tree):
        raise BuildError(f"{path}: extractNativeLibs is not true, and the engine must be a file that can be executed")
    if re.search(r"debuggable\S*=(true|\S*0xffffffff)", tree):
        raise BuildError(f"{path}: it is debuggable")
    return f"manifest: API {MIN_API} to {TARGET_API}, arm64-v8a, no permission"


def alignment(path: Path) -> str:
    run("zipalign", "-c", "-p", "4", path)
    with zipfile.ZipFile(path) as z:
        for name in STORED:
            if z.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise BuildError(f"{path}: {name} is compressed; since API 30 it may not be")
        if bad := z.testzip():
            raise BuildError(f"{path}: {bad} is damaged")
    return "zip: aligned to 4 bytes, resources stored"


def programs(path: Path) -> str:
    """Programs of aarch64, position independent, without a loader, for pages of 16 KB."""
    with zipfile.ZipFile(path) as z:
        names = [n for n in z.namelist() if n.startswith("lib/")]
        for name in names:
            if not re.fullmatch(r"lib/arm64-v8a/lib\w+\.so", name):
                raise BuildError(f"{path}: Android does not unpack {name}: expected lib/arm64-v8a/lib….so")
            elf(f"{path}: {name}", z.read(name))
    if len(names) != 2:
        raise BuildError(f"{path}: expected 2 programs, found {len(names)}")
    return "programs: static, position independent, segments aligned to 16 KB"


def elf(where: str, data: bytes) -> None:
    kind, machine = struct.unpack_from("<HH", data, 16)
    if data[:6] != b"\x7fELF\x02\x01" or machine != AARCH64 or kind != DYNAMIC_FILE:
        raise BuildError(f"{where}: expected a position independent ELF file of aarch64")
    (start,), (each, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    for at in range(start, start + each * count, each):
        segment, _, offset, address, _, _, _, aligned = struct.unpack_from("<IIQQQQQQ", data, at)
        if segment == INTERP:
            raise BuildError(f"{where}: it asks for a loader, so it is not static")
        if segment == LOAD and (aligned < PAGE or offset % PAGE != address % PAGE):
            raise BuildError(f"{where}: a segment is aligned to {aligned} bytes, not to {PAGE}")


class Uses(NamedTuple):
    """What the bytecode names of other classes: (owner, name:descriptor), and the owners of each by inheritance."""

    foreign: list[tuple[str, str]]
    owners: dict[tuple[str, str], list[str]]  # the nearest first; empty where API 35 has no such member
    guarded: set[tuple[str, str]]  # used only in methods that ask for the phone's API


def calls(path: Path) -> str:
    """Every method and field of Android and Java that the bytecode names exists, in the API that it was compiled
    against and in the least one that the app asks for.
    """
    uses, least = found_uses(path), set(LEAST.read_text().split())
    for owner, member in uses.foreign:
        if not uses.owners[owner, member]:
            raise BuildError(f"{path}: the bytecode uses {owner}.{member}, which API {TARGET_API} does not have")
        if f"{owner}.{member}" not in least and (owner, member) not in uses.guarded:
            raise BuildError(
                f"{path}: the bytecode uses {owner}.{member}, which {LEAST.name} does not name, in a method that does "
                "not ask for SDK_INT; api_level.py makes that file anew"
            )
    if len(uses.foreign) < 100:
        raise BuildError(
            f"{path}: only {len(uses.foreign)} uses of Android were found; dexdump's form may have changed"
        )
    newer = sum(f"{owner}.{member}" not in least for owner, member in uses.foreign)
    return (
        f"bytecode: {len(uses.foreign)} methods and fields, all of them in API {TARGET_API}; {newer} that API "
        f"{MIN_API} lacks are behind SDK_INT"
    )


def found_uses(path: Path) -> Uses:
    """The uses of Android and Java in an APK."""
    with zipfile.ZipFile(path) as z, tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(android_jar()) as jar:
        said = "".join(run("dexdump", "-d", z.extract(n, folder)) for n in z.namelist() if n.endswith(".dex"))
        ours = dict(map(dex_members, said.split("  Class descriptor  : ")[1:]))
        methods = [set(USE.findall(code)) for code in said.split("|[")]  # a method's code begins with |[address]
        uses = set().union(*methods)
        known = {n.removesuffix(".class") for n in jar.namelist() if n.endswith(".class")}

        @cache
        def members(name: str) -> Members:
            return ours[name] if name in ours else class_members(jar.read(f"{name}.class"))

        def owners(name: str, member: str) -> list[str]:
            if name not in ours and name not in known:
                return []
            there = members(name)
            above = [o for p in there.parents for o in owners(p, member)]
            return [name, *above] if member in there.own else above

        foreign = sorted(
            (owner, member) for owner, member in uses if owner not in ours or member not in ours[owner].own
        )
        unguarded = set().union(*(m for m in methods if SDK not in m))
        return Uses(foreign, {use: owners(*use) for use in foreign}, uses - unguarded)


def dex_members(block: str) -> tuple[str, Members]:
    """A class of the app's own: its name, and what dexdump says of it."""
    name, head = re.match(r"'L([^;]+);'", block), block.split("Static fields", 1)[0]
    if name is None:
        raise BuildError("dexdump names a class in a form that is not known")
    own = {f"{n}:{t}" for n, t in re.findall(r"^ +name +: '([^']+)'\n +type +: '([^']+)'", block, re.M)}
    return name[1], Members(re.findall(r": 'L([^;]+);'", head), own)


def class_members(data: bytes) -> Members:
    """The parents, methods and fields of a class file (Java Virtual Machine Specification, chapter 4)."""
    (count,) = struct.unpack_from(">H", data, 8)
    texts: dict[int, str] = {}
    classes: dict[int, int] = {}
    at, index = 10, 1
    while index < count:
        tag = data[at]
        if tag == 1:
            (length,) = struct.unpack_from(">H", data, at + 1)
            texts[index] = data[at + 3 : at + 3 + length].decode(errors="replace")
            at += 3 + length
        else:
            if tag == 7:
                (classes[index],) = struct.unpack_from(">H", data, at + 1)
            at += 1 + POOL[tag]
        index += 2 if tag in (5, 6) else 1
    _, _, parent, interfaces = struct.unpack_from(">HHHH", data, at)
    numbers = [parent, *struct.unpack_from(f">{interfaces}H", data, at + 8)]
    parents = [texts[classes[n]] for n in numbers if n]
    at += 8 + 2 * interfaces
    own = set()
    for _ in range(2):  # fields, then methods
        (many,) = struct.unpack_from(">H", data, at)
        at += 2
        for _ in range(many):
            _, name, descriptor, attributes = struct.unpack_from(">HHHH", data, at)
            own.add(f"{texts[name]}:{texts[descriptor]}")
            at += 8
            for _ in range(attributes):
                (length,) = struct.unpack_from(">I", data, at + 2)
                at += 6 + length
    return Members(parents, own)


def size(path: Path) -> str:
    with zipfile.ZipFile(path) as z:
        models = sum(i.compress_size for i in z.infolist() if i.filename.startswith("assets/models/"))
    without = path.stat().st_size - models
    if without > MOST_WITHOUT_MODEL:
        raise BuildError(f"{path}: {without} bytes without the model, more than {MOST_WITHOUT_MODEL}")
    return f"size: {path.stat().st_size} bytes, {without} without the model"
