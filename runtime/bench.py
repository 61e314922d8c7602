"""How fast an artifact runs here, how long until it answers, and how much memory that takes.

Prompt and decode are measured as llama.cpp's llama-bench does: random tokens through the engine alone, without a
sampler. Every repetition is told, with its median and its least and greatest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sampan.child import ended, start
from sampan.errors import InputError, brief, wrong
from sampan.extras import installed
from sampan.files import read_json, read_start, size_of
from sampan.onnx import GRAPH

from .engine import KV, Engine, EngineOptions
from .machine import look, memory
from .processor import processor
from .sampling import Sampling
from .session import Session
from .stream import Options
from .target import DEFAULT, open_engine

FORMAT = 1  # of the JSON; another number is another form
HEAD = 1 << 20  # bytes of a file that tell one model from another, with its size
RATE, SECONDS, BYTES = "tokens/s", "s", "bytes"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: prompts of so many tokens, `decode` tokens behind each of `depths`, `repetitions` times."""

    prompts: tuple[int, ...] = (512,)
    decode: int = 128
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5
    threads: int | None = None
    kv: KV | None = None
    target: str = DEFAULT

    @property
    def context(self) -> int:
        """Tokens that the longest of these needs; a first token needs room for itself behind its prompt."""
        return max([*(p + 1 for p in self.prompts), *(d + self.decode for d in self.depths if self.decode)], default=0)

    @property
    def tests(self) -> list[tuple[str, int, int]]:
        """(kind, tokens, depth) in the order of the rows; `pp`, `tg` and `ttft`."""
        tests = [("pp", n, 0) for n in self.prompts]
        tests += [("tg", self.decode, d) for d in self.depths if self.decode]
        return tests + [("ttft", n, 0) for n in self.prompts]

    @property
    def runs(self) -> int:
        """How often `progress` is called: loads, and a warm-up and the repetitions of every test."""
        return self.repetitions + len(self.tests) * (1 + self.repetitions)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: `pp512`, `tg128 @ d1024`, `ttft512`, `load`, `peak RSS`; a sample for each repetition."""

    test: str
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.samples)

    def told(self) -> dict[str, Any]:
        found = {"test": self.test, "unit": self.unit, "median": self.median, "min": min(self.samples)}
        return found | {"max": max(self.samples), "samples": list(self.samples)}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Medians of now and of an earlier run. `apart`: every repetition of one is above every one of the other."""

    test: str
    now: float
    before: float
    apart: bool

    @property
    def ratio(self) -> float:
        return self.now / self.before


def bench(path: Path, plan: Plan, progress: Callable[[int], None]) -> dict[str, Any]:
    """Measure an artifact in processes of their own; what `sampan bench --json` prints.

    The first repetitions load it, evaluate one token and end; the last process loads it and runs every test. Raises
    InputError where a length goes beyond the model's context, or where a process fails.
    """
    _check(path, plan)
    busy, loads, last = _load_average(), [], {}
    task = {"path": str(path), "plan": asdict(plan), "context": plan.context}
    for n in range(plan.repetitions):
        for event in _child(task | {"tests": plan.tests if n + 1 == plan.repetitions else []}):
            if "done" in event:
                last = event["done"]
            progress(1)
        loads.append(last["load_seconds"])
    rows = [Row(r["test"], r["unit"], tuple(r["samples"])) for r in last["rows"]]
    rows.append(Row("load", SECONDS, tuple(loads)))
    if last["peak"] is not None:
        rows.append(Row("peak RSS", BYTES, (last["peak"],)))
    return {
        "sampan_bench": FORMAT, "sampan": installed("sampan"), "model": identity(path), "machine": _machine(),
        "load_average": busy, "engine": last["engine"], "target": plan.target, "threads": last["threads"],
        "kv": last["kv"], "context": plan.context, "repetitions": plan.repetitions, "rows": [r.told() for r in rows],
    }  # fmt: skip


def identity(path: Path) -> dict[str, Any]:
    """Name, bytes, and a digest of the size and the first megabyte: a GGUF file's header, or a folder's graph."""
    inside = sorted(f for f in path.glob("*") if f.is_file()) if path.is_dir() else [path]
    files = [f for f in inside if f.name.startswith(GRAPH)] or inside
    size = sum(map(size_of, files))
    digest = hashlib.sha256(str(size).encode() + read_start(files[0], HEAD)).hexdigest()[:16]
    return {"name": path.name, "bytes": size, "digest": digest}


def _machine() -> dict[str, Any]:
    machine = look()
    cpu = processor(machine)
    return {"processor": cpu.name or machine.architecture, "cores": len(cpu.cores), "memory": memory(machine).total}


def _load_average() -> float | None:
    """How many processes wanted a core in the last minute."""
    try:
        return float(look().text("/proc/loadavg").split()[0])
    except (IndexError, ValueError):
        return None


def _check(path: Path, plan: Plan) -> None:
    """Refuse, in this process and by the option's name, what the model has no positions for."""
    for name, values, least in (
        ("--prompt", plan.prompts, 1), ("--depth", plan.depths, 0), ("--decode", (plan.decode,), 0),
        ("--repetitions", (plan.repetitions,), 1),
    ):  # fmt: skip
        if bad := [v for v in values if v < least]:
            raise wrong(name, f"a number from {least}", bad[0])
    if not plan.prompts and not plan.decode:
        raise InputError("there is nothing to measure; give --prompt or --decode")
    engine = open_engine(path, EngineOptions(vocabulary_only=True), plan.target)
    longest = engine.longest
    engine.close()
    for n in plan.prompts:
        if n + 1 > longest:
            raise wrong("--prompt", f"at most {longest - 1}, for which the model has positions", n)
    for depth in plan.depths if plan.decode else ():
        if depth + plan.decode > longest:
            raise InputError(
                f"--depth {depth} and --decode {plan.decode}: expected at most {longest} tokens together, for which "
                f"the model has positions, found {depth + plan.decode}; give less of one of them"
            )


def _child(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a process that does a task."""
    with tempfile.TemporaryFile() as log:
        process = start("from sampan.runtime.bench import main; main()", stdin=subprocess.PIPE, stderr=log)
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they are pipes
        done = False
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended before it read: `ended` tells how
                process.stdin.write(json.dumps(task))
                process.stdin.close()
            for line in process.stdout:
                event = json.loads(line)
                if "refused" in event:
                    raise InputError(event["refused"])
                done = "done" in event
                yield event
        finally:
            if not done:
                process.kill()
            code = process.wait()
            process.stdout.close()
        if not done:
            log.seek(0)
            said = ended(code, log.read().decode(errors="replace"))
            raise InputError(f"{task['path']}: the process that measures {said}")


def main() -> None:
    """Read a task, do it. Whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=answers, flush=True)

    task = json.load(sys.stdin)
    try:
        say({"done": _measure(task, lambda: say({"run": 1}))})
    except InputError as e:
        say({"refused": str(e)})


def _measure(task: dict[str, Any], step: Callable[[], None]) -> dict[str, Any]:
    plan = task["plan"]
    options = EngineOptions(context=task["context"], threads=plan["threads"], kv=plan["kv"])
    began = time.perf_counter()
    engine = open_engine(Path(task["path"]), options, plan["target"])
    load = time.perf_counter() - began
    engine.evaluate([0], 1)  # a load without a use is none: mapped weights are not read before
    measured = measure(engine, task["tests"], plan["repetitions"], step)
    status = look().text("/proc/self/status")
    peak = next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), None)
    rows = [{"test": r.test, "unit": r.unit, "samples": r.samples} for r in measured]
    return {
        "load_seconds": load, "rows": rows, "peak": peak, "engine": engine.library, "threads": engine.threads,
        "kv": engine.kv,
    }  # fmt: skip


def measure(
    engine: Engine, tests: Sequence[tuple[str, int, int]], repetitions: int, step: Callable[[], None] = lambda: None
) -> list[Row]:
    """Every test once for warm-up, then `repetitions` times; `step` is called behind each. Closes the engine."""
    random_ids = random.Random(0)  # noqa: S311 - any tokens do
    rows = []
    with Session(engine) as session:
        for kind, n, depth in tests:
            samples = []
            for run in range(1 + repetitions):
                ids = [random_ids.randrange(engine.vocab) for _ in range(n)]
                ids[0] = run % engine.vocab  # no prompt starts as the one before, which may be cached
                samples.append(
                    _decode(engine, ids, depth, again=run > 0) if kind == "tg"
                    else _prompt(engine, ids) if kind == "pp" else _first(session, engine, ids)
                )  # fmt: skip
                step()
            name = f"{kind}{n}" + (f" @ d{depth}" if depth else "")
            counted = samples[1:]
            rows.append(
                Row(name, SECONDS, tuple(counted)) if kind == "ttft" else Row(name, RATE, tuple(n / s for s in counted))
            )
    return rows


def _prompt(engine: Engine, ids: list[int]) -> float:
    """Seconds of evaluating a prompt in an empty cache, with logits of its last token."""
    engine.keep(0)
    began = time.perf_counter()
    _evaluate(engine, ids)
    return time.perf_counter() - began


def _decode(engine: Engine, ids: list[int], depth: int, *, again: bool) -> float:
    """Seconds of evaluating tokens one by one behind `depth` others, whose own evaluation does not count."""
    if not again or engine.keep(depth) != depth:  # a recurrent state cannot be cut back
        random_ids = random.Random(depth)  # noqa: S311 - any tokens do
        engine.keep(0)
        _evaluate(engine, [random_ids.randrange(engine.vocab) for _ in range(depth)])
    began = time.perf_counter()
    for token in ids:
        engine.evaluate([token], 1)
    return time.perf_counter() - began


def _first(session: Session, engine: Engine, ids: list[int]) -> float:
    """Seconds from token ids to the first token of an answer, chosen greedily, with nothing cached of them."""
    engine.keep(0)
    began = time.perf_counter()
    next(iter(session.stream(ids, Options(1, Sampling()))))
    return time.perf_counter() - began


def _evaluate(engine: Engine, ids: list[int]) -> None:
    for at in range(0, len(ids), engine.batch):
        piece = ids[at : at + engine.batch]
        engine.evaluate(piece, int(at + len(piece) == len(ids)))


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run that a file holds: what it tells of itself, and its rows by test."""

    path: Path
    told: dict[str, Any]
    rows: dict[str, Row]


def earlier(path: Path, model: dict[str, Any]) -> Earlier:
    """An earlier run of a model, which is told as `identity` does.

    Raises InputError where the file is no `sampan bench --json`, or is of another model.
    """
    told = read_json(path)
    if told.get("sampan_bench") != FORMAT:
        raise wrong(path, "what `sampan bench --json` prints", "another JSON")
    other = told.get("model")
    if not isinstance(other, dict) or other.get("digest") != model["digest"]:
        name = f"{brief(other.get('name'))} of {brief(other.get('bytes'))}" if isinstance(other, dict) else "none"
        raise wrong(f"{path}: model", f"{model['name']} of {model['bytes']} bytes and the same header", name)
    return Earlier(path, told, dict(_rows(path, told.get("rows"))))


def compare(old: Earlier, now: dict[str, Any]) -> tuple[list[Ratio], list[str]]:
    """The rows that both runs have, and what else differs: machine, versions, threads, cache, repetitions."""
    ratios = []
    for row in now["rows"]:
        other = old.rows.get(row["test"])
        if other is not None and other.unit == row["unit"]:
            apart = row["min"] > max(other.samples) or row["max"] < min(other.samples)
            ratios.append(Ratio(row["test"], row["median"], other.median, apart))
    keys = ("machine", "engine", "sampan", "target", "threads", "kv", "repetitions")
    differs = [f"{k}: {_short(old.told.get(k))} then, {_short(now[k])} now" for k in keys if old.told.get(k) != now[k]]
    return ratios, differs


def _rows(path: Path, rows: Any) -> Iterator[tuple[str, Row]]:
    for row in rows if isinstance(rows, list) else []:
        samples = row.get("samples") if isinstance(row, dict) else None
        if not isinstance(samples, list) or not samples or not all(_positive(s) for s in samples):
            raise wrong(f"{path}: rows", "rows with samples above 0", brief(row))
        yield str(row.get("test")), Row(str(row.get("test")), str(row.get("unit")), tuple(samples))


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _short(value: Any) -> str:
    return ", ".join(brief(v, 60) for v in value.values()) if isinstance(value, dict) else brief(value, 60)
