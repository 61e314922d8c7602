"""`sampan bench`: the counts and times are those of what was run, in both engines; earlier runs are read with care."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_engines import artifacts, path
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from server_engine import Scripted

from sampan.cli import cli
from sampan.errors import InputError
from sampan.runtime import bench
from sampan.runtime.bench import Plan, measure

__all__ = ["artifacts", "path"]  # fixtures of the tests here
QUICK = ("--prompt", "16", "--decode", "4", "--repetitions", "2")


class Recorded(Scripted):
    """Counts what it evaluates; each call takes 2 ms of a clock of its own, and 1 ms for each token."""

    batch, library, threads = 32, "recorded", 1

    def __init__(self, *, recurrent: bool = False) -> None:
        super().__init__(lambda _: "answer")
        self.recurrent, self.now = recurrent, 0.0
        self.calls: list[tuple[str, int, int]] = []
        self.ids: list[list[int]] = []

    def keep(self, n: int) -> int:
        kept = 0 if self.recurrent and n < len(self._cache) else n
        self.calls.append(("keep", n, kept))
        return super().keep(kept)

    def evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        self.calls.append(("evaluate", len(tokens), wanted))
        self.ids.append(list(tokens))
        self._cache += tokens
        self.now += 0.002 + 0.001 * len(tokens)
        return np.zeros((wanted, self.vocab), np.float32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorded], None]:
    return lambda engine: monkeypatch.setattr(bench.time, "perf_counter", lambda: engine.now)


def test_a_prompt_is_what_is_counted(clock: Callable[[Recorded], None]) -> None:
    clock(engine := Recorded())
    (row,) = measure(engine, [("pp", 80, 0)], 3)
    once = [("keep", 0, 0), ("evaluate", 32, 0), ("evaluate", 32, 0), ("evaluate", 16, 1)]
    assert engine.calls[:16] == 4 * once  # a warm-up and three that count
    assert row.test == "pp80" and row.unit == "tokens/s"
    assert row.samples == pytest.approx([80 / 0.086] * 3)
    assert len({tuple(ids) for ids in engine.ids}) == len(engine.ids), "every prompt is another one"
    assert all(0 <= i < engine.vocab for ids in engine.ids for i in ids)


@pytest.mark.parametrize("recurrent", [False, True])
def test_only_the_decoded_tokens_count(clock: Callable[[Recorded], None], recurrent: bool) -> None:
    """The depth is evaluated before, once where the cache can be cut back to it."""
    clock(engine := Recorded(recurrent=recurrent))
    (row,) = measure(engine, [("tg", 5, 40)], 2)
    prefix, decoded = [("evaluate", 32, 0), ("evaluate", 8, 1)], 5 * [("evaluate", 1, 1)]
    evaluated = [c for c in engine.calls if c[0] == "evaluate"]
    assert evaluated == (3 * [*prefix, *decoded] if recurrent else [*prefix, *3 * decoded])
    assert row.test == "tg5 @ d40"
    assert row.samples == pytest.approx([5 / 0.015] * 2)
    clock(engine := Recorded())
    (row,) = measure(engine, [("tg", 5, 0)], 1)
    assert row.test == "tg5" and [c for c in engine.calls if c[0] == "evaluate"] == 10 * [("evaluate", 1, 1)]


def test_the_first_token_waits_for_the_whole_prompt(clock: Callable[[Recorded], None]) -> None:
    clock(engine := Recorded())
    (row,) = measure(engine, [("ttft", 40, 0)], 2)
    assert row.test == "ttft40" and row.unit == "s"
    assert row.samples == pytest.approx([0.044] * 2)  # two calls, 40 tokens: nothing of the one before was cached


def test_spread_and_median() -> None:
    told = bench.Row("pp4", "tokens/s", (3.0, 1.0, 8.0)).told()
    assert (told["median"], told["min"], told["max"], told["samples"]) == (3.0, 1.0, 8.0, [3.0, 1.0, 8.0])


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", str(path), *arguments], catch_exceptions=False)


def refusal(path: Path, *arguments: str) -> str:
    with pytest.raises(InputError) as e:
        run(path, *arguments)
    return str(e.value)


@pytest.mark.everyday("gguf", "hybrid onnx")
def test_every_row_of_both_engines(path: Path) -> None:
    held = np.ones(400 << 20, np.uint8)  # memory of this process is none of that one's
    found = json.loads(run(path, *QUICK, "--depth", "0", "--depth", "24", "--json").stdout)
    rows = {r["test"]: r for r in found["rows"]}
    assert list(rows) == ["pp16", "tg4", "tg4 @ d24", "ttft16", "load", "peak RSS"]
    assert all(len(r["samples"]) == 2 and 0 < r["min"] <= r["median"] <= r["max"] for r in found["rows"][:-1])
    assert found["model"]["bytes"] < rows["peak RSS"]["median"] < held.nbytes
    assert found["threads"] >= 1 and found["context"] == 28
    assert found["engine"].startswith("onnxruntime " if path.is_dir() else "llama-cpp-python ")
    assert found["kv"] == ("f32" if path.is_dir() else "f16")


def test_threads_and_cache_are_those_that_the_engine_has(artifacts: dict[str, Path]) -> None:
    found = json.loads(run(artifacts["gguf"], *QUICK, "--threads", "1", "--kv", "f32", "--json").stdout)
    assert (found["threads"], found["kv"]) == (1, "f32")


@pytest.mark.slow
def test_an_earlier_run_stands_beside(artifacts: dict[str, Path], tmp_path: Path) -> None:
    path, file = artifacts["gguf"], tmp_path / "before.json"
    file.write_text(run(path, *QUICK, "--json").stdout)
    before = json.loads(file.read_text())
    for row in before["rows"]:
        row["samples"] = [s / 1000 for s in row["samples"]]
    before |= {"machine": {"processor": "Another\x1b[31m", "cores": 8, "memory": 1}, "threads": 99}
    before["rows"] = [r for r in before["rows"] if r["test"] != "ttft16"]
    file.write_text(json.dumps(before))
    result = run(path, *QUICK, "--json", "--compare", str(file))
    found = json.loads(result.stdout)
    medians = {r["test"]: r["median"] for r in found["rows"]}
    ratios = {r["test"]: r for r in found["compared"]}
    assert set(ratios) == {"pp16", "tg4", "load", "peak RSS"}
    for row in before["rows"]:
        expected = medians[row["test"]] / float(np.median(row["samples"]))
        assert ratios[row["test"]]["ratio"] == pytest.approx(expected) and ratios[row["test"]]["apart"]
    assert f"{file}: machine: Another\\x1b[31m, 8, 1 then" in result.stderr and "threads: 99 then" in result.stderr
    table = run(path, *QUICK, "--compare", str(file)).stdout
    assert "now / then" in table and "not there" in table


def test_spreads_that_overlap_are_told() -> None:
    now: dict[str, Any] = {"rows": [bench.Row("pp1", "tokens/s", (10.0, 12.0)).told()]}
    now |= dict.fromkeys(("machine", "engine", "sampan", "target", "threads", "kv", "repetitions"))
    for samples, apart in (((12.0, 15.0), False), ((12.5, 15.0), True), ((8.0, 9.5), True), ((5.0, 20.0), False)):
        old = bench.Earlier(Path("x"), dict(now), {"pp1": bench.Row("pp1", "tokens/s", samples)})
        ((ratio,), differs) = bench.compare(old, now)
        assert ratio.apart is apart and not differs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "expected what `sampan bench --json` prints, found another JSON"),
        ({"sampan_bench": 2}, "expected what `sampan bench --json` prints"),
        (
            {"model": {"name": "other\n.gguf", "bytes": 5, "digest": "0"}},
            "and the same header, found other\\n.gguf of 5",
        ),
        ({"model": 7}, "model: expected"),
        ({"rows": [{"test": "pp1", "unit": "tokens/s", "samples": [0]}]}, "rows with samples above 0"),
        ({"rows": [{"test": "pp1", "unit": "tokens/s", "samples": [float("nan")]}]}, "rows with samples above 0"),
        ({"rows": [3]}, "rows with samples above 0"),
    ],
)
def test_what_is_no_earlier_run_is_refused(
    artifacts: dict[str, Path], tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    good = {"sampan_bench": 1, "model": bench.identity(artifacts["gguf"]), "rows": []}
    (tmp_path / "f.json").write_text(json.dumps({} if change is None else good | change))
    assert message in refusal(artifacts["gguf"], "--compare", str(tmp_path / "f.json"))


def test_lengths_beyond_the_model_are_refused_by_name(path: Path) -> None:
    with bench.Session(bench.open_engine(path, bench.EngineOptions(), "cpu")) as session:
        longest = session._engine.longest
    assert f"--prompt: expected at most {longest - 1}" in refusal(path, "--prompt", str(longest))
    message = refusal(path, "--prompt", "16", "--depth", str(longest - 3), "--decode", "4")
    assert message.startswith(f"--depth {longest - 3} and --decode 4: expected at most {longest}")
    assert "--repetitions: expected a number from 1, found 0" in refusal(path, "--repetitions", "0")
    assert "--depth: expected a number from 0, found -1" in refusal(path, "--depth", "-1")
    assert "nothing to measure" in refusal(path, "--prompt", "0", "--decode", "0")


def test_a_process_that_ends_is_told(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    start = bench.start
    monkeypatch.setattr(bench, "start", lambda code, **k: start("import os; os.abort()", **k))
    assert "the process that measures ended by SIGABRT" in refusal(artifacts["gguf"], *QUICK)
    monkeypatch.setattr(bench, "start", start)
    assert "kv: expected f32, the cache of " in refusal(artifacts["onnx"], *QUICK, "--kv", "f16")


def test_what_a_plan_needs() -> None:
    assert Plan((512, 100), 128, (0, 1024)).context == 1152
    assert Plan((2048,), 128, (0,)).context == 2049
    assert Plan((), 8, (0,), 2).runs == 2 + 3
