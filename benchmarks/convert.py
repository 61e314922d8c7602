#!/usr/bin/env python3
"""Conversion against llama.cpp's two steps: wall time, peak memory, disk. Alternating runs, median of three.

    pip install sentencepiece    # the converter asks for it
    python benchmarks/convert.py CHECKPOINT [--llama TREE] [--work FOLDER] [--runs 3] [--schemes q4_0,q8_0,q4_k_m]

CHECKPOINT is a bfloat16 checkpoint folder. The two steps are convert_hf_to_gguf.py (to bf16) and
`llama_model_quantize`, from the source distribution of the pinned llama-cpp-python (fetched, or TREE) and
from the installed package; both sides use all cores and find the source in the page cache. Peak memory is
ru_maxrss of each process, mapped pages included. Every check and hash is on.

`--large N` converts a model N times as deep instead, whose extra layers are read from the same files
again under other names: same bytes read, same checks, true times. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = "import sys; from sampan.cli import main; main()"
CONVERTER = (
    "import runpy, sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/gguf-py']; script = sys.argv.pop(1);"
    "runpy.run_path(script + '/convert_hf_to_gguf.py', run_name='__main__')"
)
QUANTISER = (
    "import ctypes, sys; from llama_cpp import llama_cpp as l; p = l.llama_model_quantize_default_params();"
    "p.ftype = int(sys.argv[3]); p.nthread = int(sys.argv[4]);"
    "sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p)))"
)
LARGE = """
import sys
sys.path.insert(0, sys.argv[1])
from convert import convert_deeper
convert_deeper(*sys.argv[2:])
"""


@dataclass(frozen=True)
class Run:
    seconds: float
    peak: int  # bytes
    disk: int  # bytes beside the output at the worst moment


def measure(*command: str) -> tuple[float, int]:
    """Seconds and ru_maxrss in bytes of one process; this small parent keeps its own share out of it."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command}: exit code {process.returncode}\n{errors.decode()[-2000:]}")
    return time.monotonic() - start, usage.ru_maxrss * 1024


def ours(source: Path, work: Path, scheme: str) -> Run:
    out = work / "ours.gguf"
    seconds, peak = measure(sys.executable, "-c", OURS, "convert", str(source), "--quant", scheme, "-o", str(out))
    beside = sum(f.stat().st_size for f in work.iterdir() if f != out)
    shutil.rmtree(work)
    work.mkdir()
    return Run(seconds, peak, beside)


def two_steps(source: Path, work: Path, llama: Path, file_type: int) -> Run:
    middle, out = work / "middle.gguf", work / "theirs.gguf"
    first = measure(
        sys.executable, "-c", CONVERTER, str(llama), str(source), "--outtype", "bf16", "--outfile", str(middle)
    )
    jobs = str(os.cpu_count())
    second = measure(sys.executable, "-c", QUANTISER, str(middle), str(out), str(file_type), jobs)
    beside = middle.stat().st_size
    shutil.rmtree(work)
    work.mkdir()
    return Run(first[0] + second[0], max(first[1], second[1]), beside)


def warm(source: Path) -> None:
    """Bring every file into the page cache."""
    for file in source.glob("*.safetensors"):
        with file.open("rb") as f:
            while f.read(1 << 24):
                pass


def fetch_llama(folder: Path) -> Path:
    """The llama.cpp inside the source distribution of the pinned llama-cpp-python."""
    sys.path.insert(0, str(ROOT / "tests" / "peer"))
    from record import fetch_sdist

    pin = re.search(r"llama-cpp-python==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert pin
    return fetch_sdist(folder, pin[1])


def compare(source: Path, work: Path, llama: Path, schemes: list[str], runs: int) -> None:
    from sampan.quantize import get_scheme

    print("| scheme | two steps | sampan | ratio | two steps peak | sampan peak | two steps beside | sampan beside |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for scheme in schemes:
        theirs, mine = [], []
        for _ in range(runs):
            warm(source)
            theirs.append(two_steps(source, work, llama, get_scheme(scheme).file_type))
            warm(source)
            mine.append(ours(source, work, scheme))
        a, b = (statistics.median(r.seconds for r in x) for x in (theirs, mine))
        pa, pb = (max(r.peak for r in x) / 1e6 for x in (theirs, mine))
        da, db = (max(r.disk for r in x) / 1e6 for x in (theirs, mine))
        print(
            f"| {scheme} | {a:.1f} s | {b:.1f} s | **{b / a:.2f}** | {pa:.0f} MB | {pb:.0f} MB | {da:.0f} MB "
            f"| {db:.2f} MB |",
            flush=True,
        )


def convert_deeper(source: str, out: str, scheme: str, times: str) -> None:
    """Convert a model `times` as deep: every shard appears again with its layers renumbered."""
    from sampan.checkpoint import open_folder
    from sampan.convert.conversion import convert, prepare

    checkpoint = open_folder(Path(source))
    layers = checkpoint.config["num_hidden_layers"]
    shards = list(checkpoint.shards)
    for n in range(1, int(times)):
        for shard in checkpoint.shards:
            tensors = {}
            for info in shard.tensors.values():
                if m := re.fullmatch(r"(model\.layers\.)(\d+)(\..*)", info.name):
                    name = f"{m[1]}{int(m[2]) + n * layers}{m[3]}"
                    tensors[name] = replace(info, name=name)
            shards.append(replace(shard, name=f"{n}-{shard.name}", tensors=tensors))
    config = {**checkpoint.config, "num_hidden_layers": layers * int(times)}
    config.pop("layer_types", None)
    deeper = replace(checkpoint, config=config, shards=tuple(shards))
    convert(prepare(deeper, Path(out), "gguf", scheme))


def large(source: Path, work: Path, schemes: list[str], times: int) -> None:
    print("| scheme | model | seconds | source read | sampan peak |")
    print("|---|---|---|---|---|", flush=True)
    for scheme in schemes:
        for n in (1, times):
            warm(source)
            out = work / "large.gguf"
            here = str(Path(__file__).parent)
            seconds, peak = measure(sys.executable, "-c", LARGE, here, str(source), str(out), scheme, str(n))
            read = n * sum(f.stat().st_size for f in source.glob("*.safetensors"))
            print(f"| {scheme} | ×{n} | {seconds:.1f} s | {read / 1e9:.1f} GB | {peak / 1e6:.0f} MB |", flush=True)
            shutil.rmtree(work)
            work.mkdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--work", type=Path, help="folder with room for the outputs (default: a temporary one)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--schemes", default="q4_0,q8_0,q4_k_m")
    parser.add_argument("--large", type=int, default=0)
    options = parser.parse_args()
    json.loads((options.checkpoint / "config.json").read_text())
    schemes = options.schemes.split(",")
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        if options.large:
            large(options.checkpoint, work, schemes, options.large)
        else:
            llama = options.llama or fetch_llama(Path(temporary))
            compare(options.checkpoint, work, llama, schemes, options.runs)


if __name__ == "__main__":
    main()
