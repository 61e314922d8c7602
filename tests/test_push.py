"""sampan push, with Debian's adb client against a stand-in server; its phone is mksh, toybox and a folder."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from adb_server import APP, FILES, Adb, Phone
from conftest import run_cli

from sampan.cli import cli
from sampan.errors import InputError, UnfinishedError
from sampan.printable import printable
from sampan.runtime import adb, push

UNFINISHED = ".unfinished"
# The protocol of the app's engine, by our own runtime: what it opens and answers is the file that was pushed.
ENGINE = """#!{python}
import json, os, sys, time
from dataclasses import replace
from sampan import runtime
def say(id, event, **more): print(json.dumps(dict(event=event, id=id, **more), ensure_ascii=False), flush=True)
say(0, "ready", protocol=1, engine="stand-in", features=[])
for line in sys.stdin:
    asked = json.loads(line)
    if asked["op"] == "load":
        session = runtime.open(os.getcwd() + asked["path"], runtime.EngineOptions(context=asked["context"]))
        say(asked["id"], "progress", value=0.5)
        say(asked["id"], "loaded", name="x", context=session.context)
    elif asked["op"] == "chat":
        ids = session.tokenize_chat(asked["messages"], **asked["variables"])
        say(asked["id"], "prompt", tokens=len(ids), cached=0)
        start, n = time.monotonic(), 0
        greedy = replace(session.sampling, temperature=asked["temperature"])
        answer = session.stream(ids, runtime.Options(max_tokens=asked["max_tokens"], sampling=greedy))
        for chunk in answer:
            n += 1
            first = time.monotonic() if n == 1 else first
            if chunk.text:
                say(asked["id"], "text", text=chunk.text)
        ms = dict(prefill_ms=1000 * (first - start), decode_ms=1000 * (time.monotonic() - first))
        say(asked["id"], "done", reason=answer.finish_reason, tokens=n, prompt_tokens=len(ids), cached=0, **ms)
"""


@dataclass(frozen=True)
class Desk:
    """A model, phones, and the command in this process or (`command`) in its own: exit code, output, errors."""

    model: Path
    adb: Adb
    phone: Phone

    def push(self, *arguments: str, model: Path | None = None) -> tuple[int, str, str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli(["push", str(model or self.model), *arguments], standalone_mode=False)
            except InputError as e:
                code = 2
                err.write(f"error: {printable(e)}")
        return code, out.getvalue(), err.getvalue().strip()

    def command(self, *arguments: str, model: Path | None = None) -> tuple[int, str, str]:
        done = run_cli("push", str(model or self.model), *arguments)
        return done.returncode, done.stdout, done.stderr.strip()

    def there(self) -> dict[str, bytes]:
        folder = self.phone.path(f"{FILES}/models")
        return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}

    def engine(self, text: str, name: str = "libsampan_engine.so") -> None:
        path = self.phone.path(f"{APP}/lib/arm64/{name}")
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def desk(gguf: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """In this process llama.cpp does not open each model first."""
    if missing := [name for name in ("adb", "mksh", "toybox") if not shutil.which(name)]:
        assert "CI" not in os.environ, f"CI needs a phone's programs: apt-get install {' '.join(missing)}"
        pytest.skip(f"apt-get install {' '.join(missing)}")
    phone = Phone(tmp_path / "phone")
    phone.make()
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setattr(push, "check", lambda model: None)
    with Adb({"A1": phone}) as adb:
        for name, value in adb.environment.items():
            monkeypatch.setenv(name, value)
        yield Desk(gguf("trained", "q4_0"), adb, phone)


def test_a_push(desk: Desk) -> None:
    raw = desk.model.read_bytes()
    code, out, err = desk.command()
    assert code == 0, err
    assert out.startswith(f"{FILES}/models/{desk.model.name}: ") and f"SHA-256 {sha256(raw).hexdigest()[:12]}…" in out
    assert desk.there() == {desk.model.name: raw}
    code, out, _ = desk.push("--json")
    again = json.loads(out)
    assert (code, again["sent"], again["bytes"], again["sha256"]) == (0, 0, len(raw), sha256(raw).hexdigest())


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "unauthorized": ({"state": "unauthorized"}, "A1: expected a device that is ready, found unauthorized; unlock it"),
    "offline": ({"state": "offline"}, "A1: expected a device that is ready, found offline; plug it in again"),
    "no permissions": (
        {"state": "no permissions (user in plugdev group; are your udev rules wrong?)"},
        "A1: expected a device that is ready, found no permissions .*; this user may not open USB devices",
    ),
    "abi": ({"abis": "armeabi-v7a"}, "A1: expected a device that runs arm64-v8a programs, found armeabi-v7a; the app"),
    "no app": ({"installed": False}, r"A1: expected the app org\.sampan\.demo, found no such app; install it with"),
    "no space": ({"free": 1 << 20}, r"A1: .*/files: expected 2\.29 MB of free space, found 1\.05 MB; make room"),
    "memory": (
        {"memory": 540 << 20},
        r"A1: memory: expected 53\.1 MB for .*\.gguf \(weights 2\.21 MB, cache 4\.19 MB at 1024 tokens, rest 46\.7 MB"
        r"\), found 29.4 MB beside the system's, of 566 MB; choose a smaller --quant or --context",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_phones_that_are_refused(desk: Desk, kind: str) -> None:
    changes, expected = REFUSED[kind]
    for name, value in changes.items():
        setattr(desk.phone, name, value)
    code, out, err = desk.push()
    assert (code, out) == (2, "") and re.match(f"error: {expected}", err), err
    assert "\n" not in err and desk.there() == {}


def test_an_app_that_was_never_started(desk: Desk) -> None:
    desk.phone.make = lambda: None  # type: ignore[method-assign]
    shutil.rmtree(desk.phone.path(FILES))
    code, _, err = desk.push()
    assert code == 2 and "found none; start the app once on the device" in err
    assert not desk.phone.path(FILES).exists()


def test_which_device(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Phone(tmp_path / "other phone's")
    del desk.adb.phones["A1"]
    assert desk.push()[2].startswith("error: adb: expected one device, found none; connect a phone")
    desk.adb.phones |= {"A1": desk.phone, "B 2": other}
    assert (
        desk.push()[2] == "error: adb: expected one device, found A1 (device), B 2 (device); choose one with --serial"
    )
    expected = "error: --serial: expected a device that adb lists, found C3; connected: A1 (device), B 2 (device)"
    assert desk.push("--serial", "C3")[2] == expected
    assert desk.push("--serial", "A1")[0] == 0
    monkeypatch.setenv("ANDROID_SERIAL", "A1")
    assert desk.push()[0] == 0
    assert list(desk.there()) == [desk.model.name] and not other.scripts


def test_without_adb(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one lies in the working directory."""
    (tmp_path / "adb").write_text("#!/bin/sh\ntouch ran\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", f":{tmp_path / 'none'}"):
        monkeypatch.setenv("PATH", path)
        assert desk.push()[2].startswith("error: adb: not found; apt-get install adb")
    assert not (tmp_path / "ran").exists()


def test_little_free_memory_is_a_warning(desk: Desk) -> None:
    desk.phone.available = 40 << 20
    code, _, err = desk.push()
    assert code == 0 and re.search(r"^warning: A1: .* needs 53\.1 MB .* only 41\.9 MB is free now: close other", err), (
        err
    )


def test_an_interrupted_push_goes_on(desk: Desk) -> None:
    raw, desk.phone.cut = desk.model.read_bytes(), 700_001
    code, out, err = desk.command()
    assert (code, out) == (2, "") and err.endswith("; run the same command again to continue"), err
    assert desk.there() == {desk.model.name + UNFINISHED: raw[:700_001]}
    code, out, _ = desk.push("--json")
    assert code == 0 and json.loads(out)["sent"] == len(raw) - 700_001
    assert desk.there() == {desk.model.name: raw}


@pytest.mark.parametrize("left", [b"x" * 900_000, b"", b"x" * 3_000_000], ids=["other bytes", "empty", "longer"])
def test_what_another_push_left_does_not_come_in(desk: Desk, left: bytes) -> None:
    folder = desk.phone.path(f"{FILES}/models")
    folder.mkdir()
    (folder / (desk.model.name + UNFINISHED)).write_bytes(left)
    code, out, err = desk.push("--json")
    assert code == 0, err
    assert json.loads(out)["sent"] == desk.model.stat().st_size
    assert desk.there() == {desk.model.name: desk.model.read_bytes()}


@pytest.mark.parametrize("script", ["getprop", "mkdir", "sha256sum", "mv -f"])
def test_a_lost_connection_is_no_answer(desk: Desk, script: str) -> None:
    """adb itself ends with exit code 0 then."""
    desk.phone.lost = script
    code, out, err = desk.push()
    assert (code, out) == (2, "") and err.endswith(", before an answer came; is it still connected?"), err
    assert desk.model.name not in desk.there()
    desk.phone.lost = None
    assert desk.push()[0] == 0
    assert desk.there() == {desk.model.name: desk.model.read_bytes()}


def test_a_phone_that_hangs(desk: Desk) -> None:
    with pytest.raises(UnfinishedError, match="A1: no answer within 1 s; is it still connected"):
        adb.find().ask("sleep 5", seconds=1)


def test_damage_on_the_way(desk: Desk) -> None:
    desk.phone.damage = True
    code, out, err = desk.push()
    digest = sha256(desk.model.read_bytes()).hexdigest()
    assert (code, out) == (2, "") and f"expected SHA-256 {digest}, found " in err, err
    assert desk.there() == {}


def test_a_disk_that_fills_up(desk: Desk) -> None:
    desk.phone.largest = 512_000
    code, _, err = desk.push()
    assert code == 2 and "error: A1: " in err, err
    assert list(desk.there()) == [desk.model.name + UNFINISHED]
    desk.phone.largest = None
    assert desk.push()[0] == 0
    assert desk.there() == {desk.model.name: desk.model.read_bytes()}


def test_another_file_of_the_name(desk: Desk) -> None:
    folder = desk.phone.path(f"{FILES}/models")
    folder.mkdir()
    (folder / desk.model.name).write_bytes(b"GGUF")
    code, _, err = desk.push()
    assert code == 2 and "found another file of 4 bytes; use --overwrite to replace it" in err
    assert desk.there() == {desk.model.name: b"GGUF"}
    assert desk.push("--overwrite")[0] == 0
    assert desk.there() == {desk.model.name: desk.model.read_bytes()}


NAMES = [
    "it's; touch ran.gguf", "$(touch ran) `touch ran`.gguf", "-rf ~ & touch ran.gguf", "a b  c'' '.gguf",
    "#{x,y}[z]!.gguf", "模型.gguf",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_a_shell_would_read(desk: Desk, tmp_path: Path, name: str) -> None:
    shutil.copy(desk.model, tmp_path / name)
    code, _, err = desk.push("--overwrite", model=tmp_path / name)
    assert code == 0, err
    assert desk.there() == {name: desk.model.read_bytes()}
    assert not [p for p in desk.phone.root.rglob("*") if p.name.startswith("ran")]


@pytest.mark.parametrize(
    "name",
    ["x.bin", "x.GGUF", "new\nline.gguf", 'a"b.gguf', "a:b.gguf", "esc\x1b[2J.gguf", "x" * 241 + ".gguf", b"\xff.gguf"],
)
def test_names_that_a_phone_does_not_take(desk: Desk, tmp_path: Path, name: str | bytes) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), os.fsencode(name))))  # noqa: PTH118
    shutil.copy(desk.model, path)
    code, _, err = desk.push(model=path)
    assert code == 2 and err.endswith("; rename it") and "\n" not in err and "\x1b" not in err, err
    assert desk.there() == {}


def test_models_that_are_refused_before_a_device_is_asked(desk: Desk, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(desk.model.read_bytes()[:-100_000])
    code, _, err = desk.command(model=cut)
    assert code == 2 and err.startswith(f"error: {cut}: llama.cpp cannot open it, so nothing was pushed: "), err
    assert not desk.adb.requests


@pytest.mark.slow
def test_an_answer_from_the_phone(desk: Desk) -> None:
    desk.engine(ENGINE.format(python=sys.executable))
    code, out, err = desk.push("--run", "What is the capital of France?")
    assert code == 0, err
    assert out.splitlines()[1:] == ["The capital of France is Paris."]
    code, out, err = desk.push("--bench", "--max-tokens", "7", "--json")
    assert code == 0, err
    bench = json.loads(out)["bench"]
    assert 0 < bench["tokens"] <= 7 and bench["prompt_tokens"] > 300
    for kind, tokens in (("prefill", "prompt_tokens"), ("decode", "tokens")):
        assert bench[f"{kind}_per_second"] == pytest.approx(1000 * bench[tokens] / bench[f"{kind}_ms"])
    code, out, _ = desk.push("--bench", "--run", "What is the capital of France?")
    assert re.fullmatch(
        r"prefill [\d.]+ tokens/s \(\d+ tokens\), decode [\d.]+ tokens/s \(\d+ tokens\)", out.splitlines()[2]
    )


CORES = {"fp asimd asimddp i8mm": "fast", "fp asimd asimddp": "plain"}


@pytest.mark.parametrize("features", CORES)
def test_the_engine_fits_the_processor(desk: Desk, features: str) -> None:
    desk.phone.features = features
    desk.engine("#!/bin/sh\necho plain >&2; exit 1\n")
    desk.engine("#!/bin/sh\necho fast >&2; exit 1\n", "libsampan_engine_i8mm.so")
    assert desk.push("--run", "Hi")[2].endswith(f"A1: the engine ended with exit code 1: {CORES[features]}")


def test_a_processor_without_an_engine(desk: Desk) -> None:
    """One core of it is enough: a thread may move to any."""
    desk.phone.features = "fp asimd asimddp\nFeatures\t: fp asimd"
    code, _, err = desk.push("--run", "Hi")
    assert code == 2 and err.endswith("A1: the app has no engine for this processor, which lacks asimddp"), err


READY = '{"event":"ready","id":0,"protocol":1,"engine":"x","features":[]}'
SPEEDS = ("prompt_tokens", "cached", "prefill_ms", "tokens", "decode_ms")
LOADS = f"echo '{READY}'; read x; echo "
BROKEN = {
    "protocol 2": (f"echo '{READY.replace(':1,', ':2,')}'", "the engine: expected protocol 1, found .*; update the"),
    "no JSON": ("echo Segmentation fault", "the engine: expected JSON, found "),
    "no event": ("echo '[1]'", "the engine: expected a line of JSON with an event, found "),
    "endless line": ("yes | tr -d '\\n'", "the engine: expected a line of JSON with an event, found "),
    "refusal": (
        f"""{LOADS}'{{"event":"error","id":1,"code":"load","message":"not a \\u001b[2J model"}}'""",
        r"the engine: load: not a \\x1b\[2J model$",
    ),
    "death": (f"echo '{READY}'; read x; echo out of memory >&2; kill -9 $$", "the engine .*out of memory$"),
    "no number": (
        f"""{LOADS}'{{"event":"loaded","id":1}}'; read x; echo '{{"event":"done","id":2,"tokens":"9"}}'""",
        "the engine: done: prompt_tokens: expected a number, found None",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_engines_that_break(desk: Desk, kind: str) -> None:
    body, expected = BROKEN[kind]
    desk.engine(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
    code, _, err = desk.push("--run", "Hi")
    assert code == 2 and re.search(rf"^error: (A1: )?{expected}", err, re.MULTILINE), err
    assert list(desk.there()) == [desk.model.name]


@pytest.mark.parametrize("nfc", [True, False])
def test_a_prompt_is_composed_where_the_model_wants_it(desk: Desk, nfc: bool) -> None:
    loaded = json.dumps({"event": "loaded", "id": 1, "nfc": nfc})
    done = json.dumps({"event": "done", "id": 2} | dict.fromkeys(SPEEDS, 0))
    kept = desk.phone.root / "asked"
    desk.engine(f"#!/bin/sh\n{LOADS}'{loaded}'; read -r x; printf %s \"$x\" > '{kept}'; echo '{done}'\n")
    code, _, err = desk.push("--run", "e\u0301")
    assert code == 0, err
    assert json.loads(kept.read_text())["messages"][0]["content"] == ("\u00e9" if nfc else "e\u0301")


def test_no_engine(desk: Desk) -> None:
    code, _, err = desk.push("--run", "Hi")
    assert code == 2 and re.search(
        r"A1: the engine ended with exit code 127: .*libsampan_engine\.so.*not found$", err
    ), err
