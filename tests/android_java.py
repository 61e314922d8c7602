"""The demo app's core on a JVM, compiled as for the app: for Java 8, without a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "android-demo" / "core" / "src"
JARS = [Path("/usr/share/java") / name for name in ("junit4.jar", "hamcrest.jar")]
NEEDED = "the tests of android-demo need a JDK and JUnit 4: apt-get install default-jdk-headless junit4"
Java = Callable[..., subprocess.CompletedProcess[str]]


def compiled(out: Path) -> Java:
    """`java(main class, *arguments)` runs one of the core's classes, its tests' among them."""
    if not (shutil.which("javac") and all(jar.exists() for jar in JARS)):
        assert "CI" not in os.environ, NEEDED
        pytest.skip(NEEDED)
    path = ":".join(map(str, [out, *JARS]))
    sources = sorted(CORE.rglob("*.java"))
    subprocess.run(
        ["javac", "--release", "8", "-encoding", "UTF-8", "-Xlint:all,-options,-serial", "-Werror", "-cp", path,
         "-d", out, *sources],
        check=True, timeout=300,
    )  # fmt: skip

    def run(main: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        engine = ROOT / "tests" / "android_engine.py"
        options = [f"-Dsampan.python={sys.executable}", f"-Dsampan.engine={engine}", "-Dfile.encoding=UTF-8"]
        return subprocess.run(
            ["java", "-Xmx256m", *options, "-cp", path, main, *arguments],
            capture_output=True, text=True, encoding="utf-8", timeout=300,
        )  # fmt: skip

    return run
