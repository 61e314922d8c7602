"""`api_level.py PACKAGE.tgz`: write api26.txt, the members of Android and Java that the APK uses and that API 26 has.

PACKAGE is tns-platform-declarations of the npm registry (`npm pack tns-platform-declarations@6.5.15`), which holds what
API 26's own android.jar declares, in TypeScript. Of numbers it says no width, and a text is any CharSequence, so two
overloads that differ in that alone are not told apart.
"""

from __future__ import annotations

import re
import sys
import tarfile

from checks import LEAST, found_uses

from build import APK

SCOPE = re.compile(r"(?:(?:declare|export) module|export (?:abstract )?(?:class|interface)) ([\w.$]+)(.*)\{")
MEMBER = re.compile(r"(?:public |protected |static |abstract )*([\w$]+)(?:<.*>)?(\(.*\))?: .*;")
CONSTRUCTOR = re.compile(r"public constructor(\(.*\));")
TYPES = {"Z": "boolean", "C": "string", "V": "void"} | dict.fromkeys("BSIJFD", "number")
GENERIC = {"any", "K", "V", "T", "E"}
TEXTS = {"java/lang/String", "java/lang/CharSequence"}


def declared(text: str) -> tuple[dict[str, set[tuple[str, ...]]], dict[str, set[str]]]:
    """By class with dots: its members (a field's name, or a method's name and parameter types), its parents."""
    found: dict[str, set[tuple[str, ...]]] = {}
    parents: dict[str, set[str]] = {}
    scopes: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if scope := SCOPE.match(line):
            scopes.append(scope[1])
            name = ".".join(scopes)
            found.setdefault(name, set())
            parents.setdefault(name, set()).update(re.findall(r"[\w$]+(?:\.[\w$]+)+", scope[2]))
        elif line.endswith("{"):  # of a constructor that takes an object
            scopes.append("")
        elif line.startswith("}"):
            scopes = scopes[:-1]
        elif scopes[-1:] != [""] and (new := CONSTRUCTOR.match(line)):
            found[".".join(scopes)].add(("<init>", "(", *parameter_types(new[1])))
        elif scopes[-1:] != [""] and (member := MEMBER.match(line)):
            name, parameters = member[1], member[2]
            types = () if parameters is None else ("(", *parameter_types(parameters))
            found[".".join(scopes)].add((name, *types))
    return found, parents


def parameter_types(parameters: str) -> list[str]:
    """`(param0: a.B<c>, param1: number)` → ["a.B", "number"]."""
    flat = parameters.replace("native.Array<", "[")
    while (shorter := re.sub(r"<[^<>]*>", "", flat)) != flat:
        flat = shorter
    return [t.split(": ")[1].strip(" >") for t in flat.strip("()").split(", param") if ": " in t]


def wanted(descriptor: str) -> list[set[str]]:
    """The parameters of a descriptor (Java Virtual Machine Specification, 4.3.3), each in the ways it is written."""
    out = []
    for arrays, simple, name in re.findall(r"(\[*)(?:([ZCBSIJFD])|L([^;]+);)", descriptor[1 : descriptor.index(")")]):
        if simple:
            names = {TYPES[simple]}
        elif name in TEXTS:
            names = {"string"}
        else:
            names = {re.sub(r"[/$]", ".", name), *(GENERIC if name == "java/lang/Object" else ("any",))}
        out.append({"[" * len(arrays) + n for n in names})
    return out


def has(members: set[tuple[str, ...]], member: str) -> bool:
    name, descriptor = member.split(":")
    if not descriptor.startswith("("):
        return (name,) in members
    types = wanted(descriptor)
    return any(
        m[:2] == (name, "(") and len(m) == len(types) + 2 and all(t in w for t, w in zip(m[2:], types, strict=True))
        for m in members
    )


def main() -> None:
    with tarfile.open(sys.argv[1]) as t:
        text = t.extractfile("package/android/android-platform-26.d.ts").read().decode()  # type: ignore[union-attr]
    (there, parents), uses = declared(text), found_uses(APK)

    def inherits(name: str, member: str) -> bool:
        return has(there.get(name, set()), member) or any(inherits(p, member) for p in parents.get(name, ()))

    lines, missing = [], []
    for owner, member in uses.foreign:
        # the app's own classes have the members of Android's; only API 35 knows their parents
        names = {re.sub(r"[/$]", ".", o) for o in (owner, *uses.owners[owner, member])}
        (lines if any(inherits(n, member) for n in names) else missing).append(f"{owner}.{member}\n")
    LEAST.write_text("".join(lines))
    sys.stdout.write("".join(f"not in API 26: {line}" for line in missing))


if __name__ == "__main__":
    main()
