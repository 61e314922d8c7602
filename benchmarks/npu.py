#!/usr/bin/env python3
"""Some layers and the head of a real checkpoint in the NPU's emulator: signal to noise of every output of the graphs
against the same integers on the processor, and the memory and time of the compiler.

    python benchmarks/npu.py CHECKPOINT FOLDER [--layers 0,13,27] [--quant int8] [--htp 75] [--piece 128] [--single 8]

The checkpoint of the chosen layers is cut out of CHECKPOINT (safetensors, layers called model.layers.N) into FOLDER,
converted there, and run over English text: `--piece` tokens through the graph of 128 (0: not at all), then `--single`
through the graph of one. Each target runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

LAYER = re.compile(r"model\.layers\.(\d+)\.")
CHUNK = 1 << 26  # bytes


def cut(source: Path, out: Path, layers: list[int]) -> Path:
    """A checkpoint of these layers alone, with the embedding, the last norm and the head."""
    from sampan.checkpoint import open_folder

    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = len(layers)
    config["max_window_layers"] = len(layers)
    config.pop("layer_types", None)
    (out / "config.json").write_text(json.dumps(config))
    kept: list[tuple[str, Any, Path]] = []
    for shard in open_folder(source).shards:
        assert shard.path is not None
        for name, info in shard.tensors.items():
            match = LAYER.match(name)
            if match is None or int(match[1]) in layers:
                new = LAYER.sub(lambda m: f"model.layers.{layers.index(int(m[1]))}.", name)
                kept.append((new, info, shard.path))
    header: dict[str, Any] = {}
    end = 0
    for name, info, _ in kept:
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (out / "model.safetensors").open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, info, path in kept:
            with path.open("rb") as g:
                g.seek(info.offset)
                left = info.nbytes
                while left:
                    left -= f.write(g.read(min(left, CHUNK)))
    return out


def watch(peaks: dict[str, int]) -> None:
    """Keep the most memory that this process had, and any that it started."""
    own = os.getpid()
    while True:
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError, KeyError):
                lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
                if own in (pid := int(path.parent.name), int(lines["PPid"])):
                    what = "the converter" if pid == own else "a compiler"
                    peaks[what] = max(peaks.get(what, 0), 1024 * int(lines["VmHWM"].split()[0]))
        time.sleep(0.2)


class Recorder:
    """An ONNX Runtime session that keeps what it gave."""

    def __init__(self, session: Any, size: int, found: dict[str, list[Any]]) -> None:
        self.session, self.size, self.found = session, size, found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, names: list[str], feeds: Any) -> list[Any]:
        values: list[Any] = self.session.run(names, feeds)
        for name, value in zip(names, values, strict=True):
            self.found.setdefault(f"{self.size}:{name}", []).append(value.copy())
        return values


def child(folder: Path, target: str, piece: int, single: int, out: Path) -> None:
    """Run one target, keep all codes that its graphs give."""
    from sampan import runtime
    from sampan.validate.windows import built_in

    with runtime.open(folder, target=target) as session:
        engine: Any = session._engine
        found: dict[str, list[Any]] = {}
        engine._sessions = [{n: Recorder(s, n, found) for n, s in part.items()} for part in engine._sessions]
        ids = session.tokenize(built_in("en.txt"), around=False)[: piece + single]
        start = time.monotonic()
        if piece:
            engine.evaluate(ids[:piece], 1)
        middle = time.monotonic()
        for token in ids[piece:]:
            engine.evaluate([token], 1)
        spent = middle - start, time.monotonic() - middle
    np.savez(out, seconds=spent, **{name: np.stack(values) for name, values in found.items()})


def snr(exact: np.ndarray, found: np.ndarray) -> float:
    """Decibels."""
    noise = float(np.square(exact - found).sum())
    return float(10 * np.log10(np.square(exact).sum() / noise)) if noise else float("inf")


def compare(folder: Path, piece: int, single: int) -> None:
    from sampan.static import read_quantities

    runs = {}
    for target in ("cpu", "qnn"):
        out = folder.with_name(f"{folder.name}.{target}.npz")
        subprocess.run(
            [sys.executable, __file__, str(folder), str(out), "--child", target, "--piece", str(piece),
             "--single", str(single)], check=True,
        )  # fmt: skip
        runs[target] = np.load(out)
        print(f"{target}: the piece took {runs[target]['seconds'][0]:.1f} s, the others "
              f"{runs[target]['seconds'][1]:.1f} s", flush=True)  # fmt: skip
    quantities = read_quantities(folder)
    print("| graph | output | SNR | codes that differ |\n|---|---|---|---|")
    for key in (k for k in runs["cpu"].files if k != "seconds"):
        size, name = key.split(":", 1)
        _, scale, zero = quantities[name]
        a, b = ((run[key].astype(np.float64) - zero) * scale for run in (runs["cpu"], runs["qnn"]))
        print(f"| {size} | {name} | {snr(a, b):.1f} dB | {100 * float((a != b).mean()):.2f} % |", flush=True)
    last = [runs[t][k].argmax(-1) for k in ("1:logits", "128:logits") if k in runs["cpu"].files for t in ("cpu", "qnn")]
    same = [float((a == b).mean()) for a, b in zip(last[::2], last[1::2], strict=True)]
    print(f"the same first token: {', '.join(f'{100 * s:.1f} %' for s in same)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", help="numbers of layers, by default the first, the middle and the last one")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--htp", default="75")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--piece", type=int, default=128)
    parser.add_argument("--single", type=int, default=8)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.checkpoint, given.child, given.piece, given.single, given.folder)
        return
    from sampan import api

    count = json.loads((given.checkpoint / "config.json").read_text())["num_hidden_layers"]
    layers = [int(n) for n in given.layers.split(",")] if given.layers else sorted({0, count // 2, count - 1})
    source = given.folder / f"layers-{'-'.join(map(str, layers))}"
    if not source.exists():
        cut(given.checkpoint, source, layers)
    out = given.folder / f"{source.name}-{given.quant}-v{given.htp}"
    if not out.exists():
        start, peaks = time.monotonic(), dict[str, int]()
        threading.Thread(target=watch, args=(peaks,), daemon=True).start()
        made = api.convert(
            source, out, to="onnx", quant=given.quant, target=f"qnn-v{given.htp}", context=given.context, jobs=2
        )
        print(f"{out.name}: {made.scheme}, {made.nbytes} bytes, {time.monotonic() - start:.0f} s; at most "
              + ", ".join(f"{n / 1e9:.2f} GB in {what}" for what, n in peaks.items()), flush=True)  # fmt: skip
    compare(out, given.piece, given.single)


if __name__ == "__main__":
    main()
