"""The public names: as functions, typed, without a word on standard output."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import tiny

import sampan
from sampan import api
from sampan.errors import InputError
from sampan.validate.validation import Options


def test_from_a_checkpoint_to_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    made = api.convert(tiny.FIXTURE, tmp_path / "m.gguf", quant="q8_0", jobs=1, progress=seen.append)
    assert made.path == tmp_path / "m.gguf" and made.files == (made.path,) and made.scheme == "q8_0"
    assert made.nbytes == made.path.stat().st_size and 8 < made.bits_per_weight < 9 and sum(seen) > 0
    found = sampan.inspect(made.path)
    assert (found.kind, found.nbytes) == ("gguf", made.nbytes)
    assert found.tensors[0]["name"] == "token_embd.weight" and "tensors" in found.data
    assert sampan.inspect(tiny.FIXTURE).kind == "checkpoint"
    with sampan.open(made.path) as session:
        assert session.generate([{"role": "user", "content": "What is the capital of Peru?"}])
    with pytest.raises(InputError, match="existing file"):
        api.convert(tiny.FIXTURE, made.path)
    assert api.validate(tiny.FIXTURE, made.path, options=Options(windows=1)).verdict in ("passed", "undecided")
    assert capsys.readouterr().out == ""


def test_names_and_version() -> None:
    assert sampan.__version__ == version("sampan") and sampan.open is api.open
    assert set(sampan.__all__) <= set(dir(sampan))
    with pytest.raises(AttributeError, match="module 'sampan' has no attribute 'opne'"):
        _ = sampan.opne
    for count in (0, 3):
        with pytest.raises(InputError, match=f"candidates: expected one or two, found {count}"):
            api.validate("x", *["y"] * count)


def test_importing_takes_no_time() -> None:
    """Under 50 ms of processor time, the least of five processes, and nothing of sampan but the package itself."""
    code = (
        "import sys, time; before = set(sys.modules); began = time.process_time(); import sampan\n"
        "print(time.process_time() - began, *sorted(n for n in set(sys.modules) - before if 'sampan' in n))"
    )
    seconds = []
    for _ in range(5):  # other work on the machine makes processor time longer, too
        taken, *modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
        assert modules == ["sampan"]
        seconds.append(float(taken))
    assert min(seconds) < 0.05
