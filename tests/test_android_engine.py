"""The demo app's engine against sampan.runtime: its arm64 programs under qemu give the same ids and the same answers."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from android_programs import NATIVE, RUNS, Engine, user
from conftest import to_gguf
from test_chat import CONVERSATIONS, TEMPLATES, VARIABLES

from sampan import runtime
from sampan.errors import InputError
from sampan.runtime.sampling import Sampling

pytestmark = pytest.mark.slow
GREEDY = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
ENGLISH, CHINESE = "What is the capital of France?", "法国的首都是什么？"
# of bionic's SYSCALLS.TXT and SECCOMP_ALLOWLIST_COMMON.TXT, those that a program without network has a use for
ALLOWED = {
    "brk", "clock_gettime", "clock_nanosleep", "clone", "close", "exit", "exit_group", "faccessat", "fadvise64", "fcntl",
    "fstat", "futex", "getpid", "getppid", "getrandom", "gettid", "ioctl", "kill", "lseek", "madvise", "membarrier",
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
    assert engine.ask("load", path=str(gguf("trained", "q4_k_m")))["event"] == "loaded"
    return engine


@pytest.mark.parametrize("name", ["trained", "trained-kimi"])
@pytest.mark.parametrize("run", RUNS)
def test_greedy_answers_are_those_of_the_runtime(run: str, name: str, gguf: Gguf) -> None:
    path = gguf(name, "q4_k_m")
    with Engine(run) as engine, runtime.open(path) as session:
        assert NATIVE or engine.ready["features"] == (["dotprod"] if run == "without i8mm" else ["dotprod", "i8mm"])
        loaded = engine.ask("load", path=str(path))
        assert (loaded["event"], loaded["context"]) == ("loaded", session.context)
        for question in (ENGLISH, CHINESE):
            ids = session.tokenize_chat(user(question))
            expected = "".join(session.generate(ids, max_tokens=40, sampling=Sampling()))
            said = engine.ask("chat", messages=user(question), max_tokens=40, **GREEDY)
            assert (said["text"], said["reason"], said["prompt_tokens"]) == (expected, "stop", len(ids))
            assert len(expected) > 5


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_the_runtime(name: str, engine: Engine, tmp_path: Path) -> None:
    """Texts and ids by published templates; what one renderer refuses, the other does not write otherwise."""
    folder = tmp_path / "model"
    shutil.copytree(tiny.FIXTURE, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    nfc = engine.ask("load", path=str(tmp_path / "m.gguf"))["nfc"]
    equal = 0
    with runtime.open(tmp_path / "m.gguf", runtime.EngineOptions(vocabulary_only=True)) as session:
        for what, messages in CONVERSATIONS.items():
            sent = json.loads(
                unicodedata.normalize("NFC", json.dumps(messages, ensure_ascii=False)) if nfc else json.dumps(messages)
            )
            for variables in VARIABLES:
                said = engine.ask("render", messages=sent, variables=variables)
                try:
                    text = session.render_chat(messages, **variables)
                except InputError:
                    assert said["event"] == "error" and said["code"] == "template", (what, said)
                    continue
                assert said["event"] == "ids", (what, said)
                assert said["text"] == unicodedata.normalize("NFC", text) if nfc else text, what
                assert said["ids"] == session.tokenize(text, around=False), what
                equal += 1
    assert equal > 5
