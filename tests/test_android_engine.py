"""The demo app's engine against sampan.runtime: its arm64 programs under qemu give the same ids and answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from android_java import Java, compiled
from android_programs import NATIVE, RUNS, Engine, command, user
from conftest import to_gguf

from sampan import runtime
from sampan.runtime.memory import need
from sampan.runtime.sampling import Sampling

pytestmark = pytest.mark.slow
GREEDY = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
ENGLISH, CHINESE = "What is the capital of France?", "法国的首都是什么？"
# of bionic's SYSCALLS.TXT and SECCOMP_ALLOWLIST_COMMON.TXT, those that a program without network has a use for
ALLOWED = {
    "brk", "clock_gettime", "clock_nanosleep", "clone", "close", "exit", "exit_group", "faccessat", "fadvise64",
    "fcntl", "fstat", "futex",
    "getpid", "getppid", "getrandom", "gettid", "ioctl", "kill", "lseek", "madvise", "membarrier",
    "mlock", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "openat", "pipe2", "ppoll", "prctl",
    "pread64", "prlimit64", "read", "readlinkat", "readv", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
    "sched_getaffinity", "sched_setaffinity", "sched_yield", "set_tid_address", "setrlimit", "sigaltstack", "sysinfo",
    "tkill", "uname", "wait4", "write", "writev",
}  # fmt: skip
Gguf = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as e:
        yield e


@pytest.fixture
def loaded(engine: Engine, gguf: Gguf) -> Engine:
    """The engine with the trained tiny Qwen3."""
    assert engine.ask("load", path=str(gguf("trained", "q4_k_m")), threads=1)["event"] == "loaded"
    return engine


@pytest.mark.parametrize("name", ["trained", "trained-kimi"])
@pytest.mark.parametrize("run", RUNS)
def test_greedy_answers_are_those_of_the_runtime(run: str, name: str, gguf: Gguf) -> None:
    path = gguf(name, "q4_k_m")
    with Engine(run) as engine, runtime.open(path) as session:
        assert NATIVE or engine.ready["features"] == (["dotprod"] if run == "without i8mm" else ["dotprod", "i8mm"])
        loaded = engine.ask("load", path=str(path), threads=1)
        assert (loaded["event"], loaded["context"]) == ("loaded", session.context)
        held = sum(loaded[part] for part in ("bytes", "context_bytes", "compute_bytes"))
        assert held <= need(path, session.context).total, "what the app reckons with before it starts the engine"
        for question in (ENGLISH, CHINESE):
            ids = session.tokenize_chat(user(question))
            expected = session.generate(ids, runtime.Options(max_tokens=40, sampling=Sampling()))
            said = engine.ask("chat", messages=user(question), max_tokens=40, **GREEDY)
            assert (said["text"], said["reason"], said["prompt_tokens"]) == (expected, "stop", len(ids))
            assert len(expected) > 5


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Java:
    return compiled(tmp_path_factory.mktemp("classes"))


@pytest.mark.parametrize("name", ["trained", "trained-kimi"])
@pytest.mark.parametrize("run", RUNS)
def test_the_chat_of_the_app_shows_the_right_answers(run: str, name: str, gguf: Gguf, java: Java) -> None:
    """Its own client and the state of its screen, two turns; the models know both answers by heart."""
    said = java("org.sampan.core.Drive", gguf(name, "q4_k_m"), "512", ENGLISH, CHINESE, "--", *command(run))
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    shown = [a.get("answer") for a in answers]
    assert shown == ["The capital of France is Paris.", "法国的首都是巴黎。"], said.stdout + said.stderr
    assert all(a["reason"] == "stop" and a["speed"] > 0 and a["memory"] > 1 << 20 for a in answers)


HARM = {
    "{% for i in range(1000000000) %}{% endfor %}": "takes too long|refuses",
    "{{ raise_exception('not this way') }}": "not this way",
    "{{ messages[0].content | shout }}": "shout",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}": "ends by signal|refuses|too long",
    "{% if %}": "refuses",
}


@pytest.mark.parametrize("template", HARM)
def test_a_template_cannot_end_the_engine(template: str, engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.FIXTURE, folder)
    (folder / "chat_template.jinja").write_text(template)
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert engine.ask("load", path=str(tmp_path / "m.gguf"), threads=1)["event"] == "loaded"
    said = engine.ask("render", messages=user("x"))
    assert said["code"] == "template" and re.search(HARM[template], said["message"]), said
    assert engine.ask("stats")["event"] == "stats"


def test_a_second_turn_evaluates_what_is_new(loaded: Engine, gguf: Gguf) -> None:
    first = loaded.ask("chat", messages=user(ENGLISH), **GREEDY)
    talk = user(ENGLISH, first["text"], CHINESE)
    second = loaded.ask("chat", messages=talk, **GREEDY)
    assert second["cached"] >= first["prompt_tokens"] - 1
    with Engine() as fresh:
        fresh.ask("load", path=str(gguf("trained", "q4_k_m")), threads=1)
        anew = fresh.ask("chat", messages=talk, **GREEDY)
    assert anew["cached"] == 0 and anew["text"] == second["text"]


def test_an_answer_is_stopped_and_a_second_one_refused(loaded: Engine) -> None:
    hot = {"temperature": 100, "top_k": 0, "top_p": 1, "seed": 3}  # it hardly ever ends by itself
    first = loaded.start("chat", messages=user(ENGLISH), max_tokens=1000, **hot)
    assert next(loaded.events(first))["event"] == "prompt"
    second = loaded.start("chat", messages=user(ENGLISH))
    seen: dict[int, list[dict[str, Any]]] = {first: [], second: []}
    while not seen[second]:
        event = loaded.event()
        seen[event["id"]].append(event)
    assert seen[second][0]["code"] == "bad_request"
    loaded.start("stop", target=first)
    *_, last = loaded.events(first)
    assert last["reason"] == "stopped" and last["tokens"] < 1000
    assert loaded.ask("chat", messages=user(ENGLISH), **GREEDY)["text"] == "The capital of France is Paris."


def test_lengths_are_kept(loaded: Engine) -> None:
    short = loaded.ask("chat", messages=user(ENGLISH), max_tokens=3, **GREEDY)
    assert (short["reason"], short["tokens"], short["text"]) == ("length", 3, "The capital of")
    assert loaded.ask("chat", messages=user("word " * 2000))["code"] == "too_long"


LINES = [
    b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"op":"load"}', b'{"id":7}', b'{"op":"dance","id":7}',
    b'{"op":7,"id":7}',
    b'{"op":"stats","id":-1}', b'{"op":"stats","id":1e3}', b'{"op":"stats","id":99999999999999999999}',
    b'{"op":"chat","id":7,"messages":[]}', b'{"op":"chat","id":7,"messages":"x"}',
    b'{"op":"chat","id":7,"messages":[7]}',
    b'{"op":"chat","id":7,"messages":[{"role":"user","content":["x"]}]}',
    b'{"op":"chat","id":7,"messages":[{"role":"user","content":"x"}],"max_tokens":-1}',
    b'{"op":"chat","id":7,"messages":[{"role":"user","content":"x"}],"temperature":"hot"}',
    b'{"op":"chat","id":7,"messages":[{"role":"user","content":"x"}],"variables":{"messages":1}}',
    b'{"op":"chat","id":7,"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"op":"load","id":7,"path":7}', b'{"op":"load","id":7,"path":"x","threads":1.5}',
    b"[" * 100_000, b"x" * (2 << 20),
    b'{"op":"stats","id":1,"x":' + b"[" * 90 + b"]" * 90 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:40].decode(errors="replace"))
def test_what_is_no_request_is_refused(line: bytes, loaded: Engine) -> None:
    loaded.send(line + b"\n")
    said = loaded.event()
    assert (said["event"], said["code"]) == ("error", "bad_request")
    assert loaded.ask("stats")["event"] == "stats"


HOSTILE = sorted((Path(__file__).parent / "hostile" / "gguf").glob("*.gguf"))


@pytest.mark.parametrize("path", HOSTILE, ids=lambda p: p.stem)
def test_a_hostile_header_is_refused(path: Path, engine: Engine) -> None:
    said = engine.ask("load", path=str(path))
    assert (said["event"], said["code"]) == ("error", "load") and said["message"]
    assert engine.ask("stats")["model_bytes"] >= 0


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_is_refused(keep: float, engine: Engine, gguf: Gguf, tmp_path: Path) -> None:
    whole = gguf("trained", "q4_k_m").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: int(len(whole) * keep)])
    assert engine.ask("load", path=str(tmp_path / "m.gguf"))["code"] == "load"


def test_what_does_not_fit_is_refused_before_a_weight_is_read(engine: Engine, gguf: Gguf, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.FIXTURE, folder)
    tiny.edit_json(folder / "config.json", max_position_embeddings=1 << 24)
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    said = engine.ask("load", path=str(tmp_path / "m.gguf"), context=min(1 << 24, memory // 2048))
    assert said["code"] == "memory" and said["need_bytes"] > said["available_bytes"], said
    assert "MiB" in said["message"]


def test_it_ends_with_its_parent() -> None:
    """Also where its standard input stays open."""
    code = "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); time.sleep(600)"
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", code, *command("i8mm")], stdin=read, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert json.loads(parent.stdout.readline())["event"] == "ready"
        parent.kill()
    os.close(read)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the engine outlived its parent")
    os.close(write)


def test_it_ends_with_its_input() -> None:
    with Engine() as engine:
        assert engine.process.stdin is not None
        engine.process.stdin.close()
        assert engine.process.wait(timeout=30) == 0


PHONES: dict[str, tuple[dict[int, int], str, list[int]]] = {
    "capacity": (dict(enumerate([250] * 4 + [760] * 3 + [1024])), "cpu_capacity", [4, 5, 6, 7]),
    "frequency": (dict(enumerate([1800000] * 4 + [2400000] * 4)), "cpufreq/cpuinfo_max_freq", [4, 5, 6, 7]),
    "three frequencies": (
        dict(enumerate([1785600] * 4 + [2419200] * 3 + [2841600])),
        "cpufreq/cpuinfo_max_freq",
        [4, 5, 6, 7],
    ),
    "all alike": (dict(enumerate([1024] * 4)), "cpu_capacity", [0, 1, 2, 3]),
    "nothing told": (dict(enumerate([0] * 2)), "unknown", [0, 1]),
}


@pytest.mark.parametrize("name", PHONES)
def test_big_cores_are_chosen(name: str, tmp_path: Path) -> None:
    cores, file, expected = PHONES[name]
    for core, value in cores.items():
        path = tmp_path / f"cpu{core}" / file
        path.parent.mkdir(parents=True)
        path.write_text(f"{value}\n")
    run = subprocess.run([*command("i8mm"), "--cores", str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == expected


@pytest.mark.skipif(bool(NATIVE), reason="of the programs for arm64")
def test_a_processor_without_a_feature_is_told() -> None:
    old = [*command("without i8mm")[:-1], command("i8mm")[-1]]
    run = subprocess.run(old, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    said = json.loads(run.stdout)
    assert (run.returncode, said["code"]) == (3, "cpu") and "i8mm" in said["message"]


@pytest.mark.skipif(bool(NATIVE), reason="of the programs for arm64")
@pytest.mark.parametrize("run", ["i8mm", "without i8mm"])
def test_system_calls_are_those_that_android_allows(run: str, gguf: Gguf, tmp_path: Path) -> None:
    log = tmp_path / "strace"
    qemu, *rest = command(run)
    traced = ["sh", "-c", f'exec "$@" 2> {log}', "sh", qemu, "-strace", *rest]
    with subprocess.Popen(traced, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for request in (
            {"op": "load", "id": 1, "path": str(gguf("trained", "q4_k_m")), "threads": 2},
            {"op": "chat", "id": 2, "messages": user(ENGLISH)} | GREEDY,
        ):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            while json.loads(process.stdout.readline())["event"] not in ("loaded", "done"):
                pass
        process.stdin.close()
    used = set(re.findall(r"^\d+ ([a-z_0-9]+)\(", log.read_text(errors="replace"), re.M))
    assert {"read", "mmap", "clone", "exit_group"} <= used <= ALLOWED, used - ALLOWED
