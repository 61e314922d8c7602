"""What is inside the app: an SBOM in CycloneDX's form and the licences of all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tools import ROOT, BuildError, pins, sha256, unpacked

OWN = "Apache-2.0"
# name, licence (SPDX), pinned download it comes from, files of its licence
PARTS = (
    ("llama.cpp", "MIT", "llama-cpp-python", ("vendor/llama.cpp/LICENSE",)),
    ("nlohmann/json", "MIT", "llama-cpp-python", ("vendor/llama.cpp/licenses/LICENSE-jsonhpp",)),
    ("musl", "MIT", "ziglang", ("ziglang/lib/libc/musl/COPYRIGHT",)),
    ("libc++", "Apache-2.0 WITH LLVM-exception", "ziglang", ("ziglang/lib/libcxx/LICENSE.TXT",)),
    ("libc++abi", "Apache-2.0 WITH LLVM-exception", "ziglang", ("ziglang/lib/libcxxabi/LICENSE.TXT",)),
    ("libunwind", "Apache-2.0 WITH LLVM-exception", "ziglang", ("ziglang/lib/libunwind/LICENSE.TXT",)),
    ("zig compiler runtime", "MIT", "ziglang", ("ziglang/LICENSE",)),
)


def licences() -> bytes:
    """The texts of all licences, each under the names of what it is for."""
    texts: dict[str, list[str]] = {(ROOT / "LICENSE").read_text(): ["sampan", "its tiny model"]}
    for name, _, source, files in PARTS:
        for file in files:
            texts.setdefault(unpacked(source, file).read_text(errors="replace"), []).append(name)
    blocks = (f"{', '.join(names)}\n{'=' * 72}\n{text.strip()}\n" for text, names in texts.items())
    return "\n\n".join(blocks).encode()


def sbom(apk: Path, programs: dict[str, Path], models: dict[str, Path]) -> str:
    """CycloneDX 1.5 as JSON: the parts, and the files inside by SHA-256; the models are the project's own."""
    version = _version()
    parts = [_part("sampan", "application", version, OWN, f"https://spdx.org/licenses/{OWN}.html")]
    for name, licence, source, _ in PARTS:
        at, digest = pins()[source]
        parts.append(
            _part(name, "library", f"as in {source} {at}", licence, f"pkg:pypi/{source}@{at}?checksum=sha256:{digest}")
        )
    inside: list[dict[str, object]] = [
        {"type": "file", "name": n, "hashes": _hash(sha256(p))} for n, p in sorted(programs.items())
    ]
    inside += [
        {"type": "file", "name": n, "hashes": _hash(sha256(p)), "licenses": [{"license": {"id": OWN}}]}
        for n, p in sorted(models.items())
    ]
    serial = hashlib.sha256(apk.read_bytes()).hexdigest()
    app = {"type": "application", "name": apk.name, "version": version}
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": app | {"hashes": _hash(serial)}},
        "components": parts + inside,
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


def _part(name: str, kind: str, version: str, licence: str, source: str) -> dict[str, object]:
    expression = {"expression": licence} if " " in licence else {"license": {"id": licence}}
    reference = (
        {"type": "distribution", "url": source} if source.startswith("pkg:") else {"type": "license", "url": source}
    )
    return {"type": kind, "name": name, "version": version, "licenses": [expression], "externalReferences": [reference]}


def _hash(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _version() -> str:
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise BuildError("pyproject.toml: no version")
