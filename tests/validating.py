"""What the tests of `sampan validate` share: a run without bars, and files with faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from sampan.validate.artifact import Stored, chunks, compose, open_gguf, read_raw
from sampan.validate.validation import Options, validate

QUICK = Options(windows=3)
ONE = replace(QUICK, windows=1)


class Silent:
    """Takes the place of progress bars and keeps what they were asked for."""

    asked: list[tuple[int, str, str]] = []  # noqa: RUF012 - reset by the fixture

    def __init__(self, *arguments: Any) -> None:
        self.asked.append(arguments)
        self.total, self.done = arguments[0], 0

    def __call__(self, n: int) -> None:
        self.done += n

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        assert kind is not None or self.total * 0.9 <= self.done <= self.total, self.total


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One reference cache for all tests of this file, and no memory of earlier bars."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    Silent.asked = []
    yield


def run(candidate: Path, reference: Path | str = tiny.FIXTURE, options: Options = QUICK) -> dict[str, Any]:
    report = validate(str(reference), [candidate], options, Silent)
    data: dict[str, Any] = json.loads(json.dumps(report))  # as scripts get it
    return data


def aborting(role: str) -> str:
    """In the place of isolated.CODE: a child whose engine aborts when it has opened that side's model."""
    return f"""
import os
from sampan.validate import child
real = child._open
def abort(side, *rest):
    model = real(side, *rest)
    if side["role"] == "{role}":
        os.abort()
    return model
child._open = abort
child.main()
"""


def kld(report: dict[str, Any], part: str = "total") -> float:
    return float(report["candidates"][0]["drift"][part]["mean"]["kld"]["value"])


def findings(report: dict[str, Any]) -> dict[str, list[str]]:
    """Check → what it found, of the checks that found something."""
    return {c["name"]: c["findings"] for c in report["candidates"][0]["checks"] if c["findings"]}


def rewritten(source: Path, out: Path, change: Callable[[str, bytearray, Stored], None]) -> Path:
    """A copy of a GGUF file whose tensors' bytes went through `change`."""
    out.write_bytes(source.read_bytes())
    with out.open("r+b") as f:
        for t in open_gguf(out).tensors.values():
            raw = bytearray(b"".join(read_raw(t, f.fileno(), s, n).tobytes() for s, n in chunks(t)))
            before = bytes(raw)
            change(t.name, raw, t)
            if raw != before:
                f.seek(t.offsets[0])
                f.write(raw)
    return out


def with_metadata(source: Path, out: Path, **changes: Any) -> Path:
    """A copy with other metadata values."""
    artifact = open_gguf(source)
    metadata = dict(artifact.metadata)
    for key, value in changes.items():
        metadata[key] = replace(metadata[key], value=value)
    return compose(out, metadata, list(artifact.tensors.values()), lambda t: False)
