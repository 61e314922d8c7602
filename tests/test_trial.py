"""What the engine cannot open gets no name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import conftest
import pytest
import tiny

from sampan.checkpoint import open_folder
from sampan.convert import trial
from sampan.convert.conversion import Conversion, convert, prepare
from sampan.errors import InputError, UnfinishedError
from sampan.job import work_folder

FIVE = b"\x05\0\0\0\0\0\0\0"  # the length of a string in GGUF


@pytest.fixture(autouse=True)
def with_trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trial, "trial", conftest.TRIAL)
    yield


def prepared(out: Path, to: str, **options: int) -> Conversion:
    return prepare(open_folder(tiny.FIXTURE), out, to, "q8_0", jobs=1, **options)  # type: ignore[arg-type]


def with_header(c: Conversion, name: str, change: Callable[[bytes], bytes]) -> Conversion:
    """The same conversion with another header of the same length in one of its files."""
    files = [replace(f, header=change(f.header)) if f.path.name == name else f for f in c.plan.files]
    (changed,) = [new for new, old in zip(files, c.plan.files, strict=True) if new != old]
    assert changed.size == next(f.size for f in c.plan.files if f.path.name == name)
    return replace(c, plan=replace(c.plan, files=tuple(files)))


@pytest.mark.parametrize(("to", "options"), [("gguf", {}), ("gguf", {"split": 500_000}), ("onnx", {})])
def test_what_opens_is_written(to: str, options: dict[str, int], tmp_path: Path) -> None:
    c = prepared(tmp_path / "m.gguf", to, **options)
    assert len(c.plan.files) > 1 or not options
    assert convert(c).untried == ""
    assert c.artifact.exists() and not work_folder(c.out).exists()


@pytest.mark.parametrize(
    ("to", "name", "old", "new", "said"),
    [
        # two ids of one text: llama.cpp stops its process
        ("gguf", "m", FIVE + b"\xc4\xa0the", FIVE + b"\xc4\xa0and", "llama.cpp .*SIGABRT.*GGML_ASSERT.*token_to_id"),
        ("gguf", "m", b"blk.0.attn_q.weight", b"blk.0.attn_z.weight", "llama.cpp .*'blk.0.attn_q.weight' not found"),
        ("onnx", "model.onnx", b"GroupQueryAttention", b"GroupQueryAttentiom", "ONNX Runtime .*GroupQueryAttentiom"),
        ("onnx", "tokenizer.json", b'"added_tokens"', b'"added-tokens"', "ONNX Runtime .*tokenizer.json"),
    ],
    ids=["a text twice", "a tensor", "an operator", "a tokenizer"],
)  # fmt: skip
def test_what_the_engine_refuses_gets_no_name(
    to: str, name: str, old: bytes, new: bytes, said: str, tmp_path: Path
) -> None:
    c = prepared(tmp_path / "m", to)
    assert any(old in f.header for f in c.plan.files), old
    with pytest.raises(InputError, match=rf"m: {said}.*; please report it$") as caught:
        convert(with_header(c, name, lambda header: header.replace(old, new)))
    assert "cannot open what would be written, so nothing was: " in str(caught.value)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, UnfinishedError)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_ends_the_work_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for with every piece of the source."""
    monkeypatch.setattr(trial, "CODE", 'print(\'{"refused": "no"}\')')
    passed = []

    def slow(n: int) -> None:
        passed.append(n)
        time.sleep(0.5)

    c = prepare(open_folder(tiny.FIXTURE), tmp_path / "m", "gguf", "q8_0", jobs=1, max_memory=10**6)
    with pytest.raises(InputError, match="so nothing was: no; please report it"):
        convert(c, progress=slow)
    assert sum(passed) < c.source_bytes


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda code: monkeypatch.setattr(trial, "CODE", code)


@pytest.mark.parametrize(("to", "module", "engine"), [
    ("gguf", "llama_cpp", "llama.cpp"), ("onnx", "onnxruntime", "ONNX Runtime"), ("onnx", "tokenizers", "ONNX Runtime"),
])  # fmt: skip
def test_an_engine_that_is_not_installed(
    to: str, module: str, engine: str, says: Callable[[str], None], tmp_path: Path
) -> None:
    says(f"import sys; sys.modules[{module!r}] = None; {trial.CODE}")
    c = prepared(tmp_path / "m", to)
    assert convert(c).untried.startswith(
        f"{engine} was not tried on it: it cannot be imported (import of {module} halted"
    )
    assert c.artifact.exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", r"its process ended by SIGABRT; please report it"),
        ("raise SystemExit('no such luck')", r"its process ended with exit code 1: no such luck; please"),
        ("", r"its process ended with exit code 0; please"),
        ('print(\'{"refused": "a\\\\nb"}\')', r"nothing was: a b; please"),
    ],
)
def test_a_child_that_dies(code: str, said: str, says: Callable[[str], None], tmp_path: Path) -> None:
    says(code)
    with pytest.raises(InputError, match=rf"m: the engine cannot open what would be written, so .*{said}"):
        convert(prepared(tmp_path / "m", "gguf"))
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_hangs(says: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = trial.CODE
    says("import time; time.sleep(60)")
    monkeypatch.setattr(trial, "SECONDS", 1)
    with pytest.raises(UnfinishedError, match="m: the engine has not opened it within 1 s; run again to continue"):
        convert(prepared(tmp_path / "m", "gguf"))
    says(code)
    monkeypatch.undo()
    assert convert(prepared(tmp_path / "m", "gguf")).records, "the work was kept"
