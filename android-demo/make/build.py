"""`make android-demo`: the app with a tiny model, checked, in build/android/."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import checks
import contents
import native
import package
from tools import ROOT, BuildError, need_debian, run, sha256

OUT = ROOT / "build/android"
APK = OUT / "sampan-demo.apk"
MODEL = "tiny-qwen3"


def main() -> None:
    need_debian()
    OUT.mkdir(parents=True, exist_ok=True)
    print("engine: two programs for arm64 (cold: about 10 minutes on 2 cores)", flush=True)
    programs = native.build()
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / f"{MODEL}.gguf"
        sampan = Path(sys.executable).with_name("sampan")
        run(sampan, "convert", ROOT / "tests/fixtures" / MODEL, "-o", model)
        models = {model.name: model}
        texts = {"licences.txt": contents.licences()}
        twice = Path(name) / "twice.apk"
        for out in (APK, twice):
            package.build(out, programs, models, texts)
        if sha256(APK) != sha256(twice):
            raise BuildError(f"{APK}: two builds of the same sources differ")
        (OUT / "sbom.json").write_text(contents.sbom(APK, programs, models))
        (OUT / "licences.txt").write_bytes(texts["licences.txt"])
    for name, path in programs.items():
        shutil.copy(path, OUT / name)
    for held in checks.apk(APK):
        print(held)
    APK.with_suffix(".apk.sha256").write_text(f"{sha256(APK)}  {APK.name}\n")
    print(f"{APK.relative_to(ROOT)}: {sha256(APK)}, the same twice")


def sanitized() -> None:
    """`make android-sanitized`: the engine for the fuzz test."""
    need_debian()
    OUT.mkdir(parents=True, exist_ok=True)
    print("engine with sanitizers, for this machine", flush=True)
    shutil.copy(native.sanitized(), OUT / "engine-sanitized")


if __name__ == "__main__":
    try:
        sanitized() if sys.argv[1:] == ["sanitized"] else main()
    except BuildError as e:
        sys.exit(f"error: {e}")
