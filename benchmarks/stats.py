#!/usr/bin/env python3
"""What statistics do for int4: drift of GGUF and ONNX with and without them, domain by domain.

    python benchmarks/stats.py CHECKPOINT FOLDER [--windows N] [--to gguf] [--on-grid]

A checkpoint whose matrices already lie on a 4-bit grid flatters a type of that grid; `--on-grid` says that it is such a
one: then noise of up to half a step (of blocks of 32, 15 steps between the smallest and the largest value; uniform,
seeded) is added to every value of every matrix first. FOLDER keeps the checkpoint, the statistics and the artifacts.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sampan import api
from sampan.calibrate.calibration import calibrate
from sampan.checkpoint import open_folder
from sampan.validate.validation import Options

BLOCK = 32


def noisy(source: Path, out: Path, seed: int = 0) -> Path:
    """A copy of a bfloat16 checkpoint, its matrices moved off their grid."""
    if (out / "config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for shard in open_folder(source).shards:
        assert shard.path is not None
        shutil.copy(shard.path, out / shard.path.name)
        with (out / shard.path.name).open("r+b") as f:
            for info in shard.tensors.values():
                if len(info.shape) < 2 or info.shape[-1] % BLOCK:
                    continue
                assert info.dtype == "BF16", info
                f.seek(info.offset)
                raw = np.frombuffer(f.read(info.nbytes), "<u2")
                f.seek(info.offset)
                for part in np.array_split(raw.reshape(-1, BLOCK), max(1, raw.size >> 22)):
                    x = (part.astype(np.uint32) << 16).view(np.float32)
                    step = (x.max(1) - x.min(1)) / 15
                    x = x + (rng.random(x.shape, np.float32) - np.float32(0.5)) * step[:, None]
                    bits = x.view(np.uint32)
                    f.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, out)
    return out


@contextlib.contextmanager
def bars(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    start = time.monotonic()
    yield lambda n: None
    print(f"{what}: {total} {unit}, {time.monotonic() - start:.0f} s", flush=True)


def compare(checkpoint: Path, folder: Path, stats: Path, to: str, windows: int) -> None:
    paths = []
    for name, given in (("without", None), ("with", stats)):
        out = folder / (f"{name}.gguf" if to == "gguf" else f"{name}-onnx")
        start = time.monotonic()
        made = api.convert(checkpoint, out, to=to, quant="int4", stats=given, overwrite=True)
        print(f"{out.name}: {made.scheme}, {made.nbytes} bytes, {time.monotonic() - start:.0f} s", flush=True)
        paths.append(made.path)
    report = api.validate(checkpoint, *paths, options=Options(windows=windows)).report
    without, with_ = (c["drift"]["total"] for c in report["candidates"])
    print(f"{to}, KLD of {windows} windows a domain     without                          with")
    for domain in without:
        cells = []
        for drift in (without, with_):
            kld = drift[domain]["kld"]
            span = "" if kld["low"] is None else f" [{kld['low']:.5f}, {kld['high']:.5f}]"
            cells.append(f"{kld['value']:.5f}{span}, top-1 {drift[domain]['top1']['value']:.4f}")
        print(f"  {domain:8} {cells[0]:45} {cells[1]}")
    print(f"  without / with: {report['comparison']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--to", choices=["gguf", "onnx"], action="append")
    parser.add_argument("--on-grid", action="store_true")
    parser.add_argument("--text", type=Path, action="append", default=[])
    given = parser.parse_args()
    checkpoint = noisy(given.checkpoint, given.folder / "checkpoint") if given.on_grid else given.checkpoint
    stats = given.folder / "stats.safetensors"
    if not stats.exists():
        print(calibrate(str(checkpoint), stats, bars, texts=given.text), flush=True)
    for to in given.to or ["gguf", "onnx"]:
        compare(checkpoint, given.folder, stats, to, given.windows)


if __name__ == "__main__":
    main()
