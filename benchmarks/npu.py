#!/usr/bin/env python3
"""Some layers and the head of a real model in the NPU's emulator: signal to noise of every output against the same
integers on the processor, and the memory and time of the compiler. Meant for once a release.

    python benchmarks/npu.py CHECKPOINT FOLDER [--layers 0,13,27] [--quant int8] [--htp 75] [--single 4] [--piece]

The whole model is converted into FOLDER with a part for each layer. It reads English text on the processor: 128 tokens,
then `--single` one by one; what the chosen layers and the head were given is kept, and so are their answers. Those
parts alone are compiled, and given the same in the emulator. `--piece`: the graphs of 128 tokens too. `--reference`:
the logits against transformers' in float32 too, which takes four bytes of memory for each weight. What is there
already is not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LIMIT = 1800  # seconds for a part in the emulator


def watch(peaks: dict[str, int]) -> None:
    """Keep the most memory that this process had, and any that it started."""
    own = os.getpid()
    while True:
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError, KeyError, ValueError):
                lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
                if own in (pid := int(path.parent.name), int(lines["PPid"])):
                    what = "converter" if pid == own else "compiler"
                    peaks[what] = max(peaks.get(what, 0), 1024 * int(lines["VmHWM"].split()[0]))
        time.sleep(0.2)


def to_folder(checkpoint: Path, out: Path, quant: str, htp: str, context: int) -> None:
    """Convert with a part for each layer, compile nothing."""
    from sampan import api
    from sampan.convert.formats.onnx import compiled, npu

    npu.cut = lambda arch, *_, **__: npu.each_layer(arch)  # type: ignore[assignment]
    compiled.compiled = lambda *_: ({}, [])  # type: ignore[assignment]
    api.convert(checkpoint, out, to="onnx", quant=quant, target=f"qnn-v{htp}", context=context, jobs=2)


def walk(folder: Path, chosen: list[int], single: int, out: Path) -> list[int]:
    """Read a text part by part, and keep the calls of chosen parts: out/PART.CALL.npz. Returns the text's ids."""
    from sampan import runtime
    from sampan.runtime.engines.static import _on_processor
    from sampan.static import EMBEDDING_FILE, TABLES_FILE, TOKENS, read_layout, read_quantities, visible
    from sampan.validate.windows import built_in

    layout, quantities = read_layout(folder), read_quantities(folder)
    with runtime.open(folder, runtime.EngineOptions(vocabulary_only=True)) as session:
        ids = session.tokenize(built_in("en.txt"), around=False)[: TOKENS[0] + single]

    def codes(name: str, values: np.ndarray) -> np.ndarray:
        _, scale, zero = quantities[name]
        return np.clip(np.rint(values / np.float32(scale)) + zero, 0, 65535).astype(np.uint16)

    calls = [(0, TOKENS[0]), *((TOKENS[0] + i, 1) for i in range(single))]
    embedding = np.memmap(folder / EMBEDDING_FILE, np.float16, "r").reshape(layout.vocab, layout.hidden)
    hidden = [embedding[ids[at : at + n]].astype(np.float32) for at, n in calls]
    flat, start, tables = np.fromfile(folder / TABLES_FILE, np.float32), 0, {}
    for name, (rows, width) in layout.tables.items():
        tables[name] = codes(name, flat[start : start + rows * width].reshape(rows, 1, width))
        start += rows * width
    out.mkdir(exist_ok=True)
    for number, part in enumerate(layout.parts):
        sessions = {n: _on_processor(folder / name, None, None) for n, name in part.items()}
        cache: dict[str, np.ndarray] = {}
        for call, (at, n) in enumerate(calls):
            feeds: dict[str, np.ndarray] = {}
            for i in sessions[n].get_inputs():
                if i.name == "mask":
                    feeds[i.name] = np.where(visible(at, n, layout.context), np.uint16(65535), np.uint16(0))
                elif i.name in tables:
                    feeds[i.name] = tables[i.name][None, at : at + n]
                elif i.name.startswith("past_"):
                    feeds[i.name] = cache.setdefault(i.name, np.full(i.shape, 128, np.uint8))
                else:
                    feeds[i.name] = hidden[call]
            names = [o.name for o in sessions[n].get_outputs()]
            found = dict(zip(names, sessions[n].run(names, feeds), strict=True))
            if number in chosen:
                given = {f"in:{k}": v for k, v in feeds.items()}
                np.savez(out / f"{number}.{call}.npz", **given, **{f"out:{k}": v for k, v in found.items()})
            for name in [k for k in found if k.startswith("present_")]:
                slots = [slice(None)] * 4
                slots[3 if "key" in name else 2] = slice(at, at + n)
                cache[name.replace("present", "past")][tuple(slots)] = found.pop(name)
            (hidden[call],) = found.values()
    return ids


def emulate(graph: Path, htp: str, calls: list[Path]) -> None:
    """In a process of its own: what a compiled graph answers to kept calls, beside them as *.qnn.npz."""
    from sampan import qnn

    session = qnn.session(graph, htp)
    names = [o.name for o in session.get_outputs()]
    for path in calls:
        call = np.load(path)
        feeds = {i.name: call[f"in:{i.name}"] for i in session.get_inputs()}
        found = dict(zip(names, session.run(names, feeds), strict=True))
        np.savez(path.with_suffix(".qnn.npz"), **found)
    os._exit(0)  # the library's own end is not ours to wait for


def snr(exact: np.ndarray, found: np.ndarray) -> float:
    """Decibels."""
    noise = float(np.square(exact - found).sum())
    return float(10 * np.log10(np.square(exact).sum() / noise)) if noise else float("inf")


def compared(folder: Path, calls: list[Path]) -> Iterator[tuple[str, str]]:
    """Each output of a graph over all its calls, and what is to be said of it."""
    from sampan.static import read_quantities

    quantities = read_quantities(folder)
    exact, found = [np.load(c) for c in calls], [np.load(c.with_suffix(".qnn.npz")) for c in calls]
    for name in found[0].files:
        a = np.stack([c[f"out:{name}"] for c in exact]).astype(np.float64)
        b = np.stack([c[name] for c in found]).astype(np.float64)
        if name not in quantities:  # the residual stream
            yield name, f"float16 | {snr(a, b):.1f} dB |"
            continue
        bits, scale, zero = quantities[name]
        differ, most = 100 * float((a != b).mean()), int(np.abs(a - b).max())
        same = f"; first token equal in {100 * float((a.argmax(-1) == b.argmax(-1)).mean()):.0f} %"
        yield (
            name,
            (
                f"{bits} bits | {snr((a - zero) * scale, (b - zero) * scale):.1f} dB | {differ:.1f} % by up to {most}"
                f"{same if name == 'logits' else ''}"
            ),
        )


def drift(checkpoint: Path, ids: list[int], folder: Path, calls: Path, head: int) -> str:
    """The logits of these integers against transformers' in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from sampan.static import read_quantities

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, low_cpu_mem_usage=True)
        exact = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    _, scale, zero = read_quantities(folder)["logits"]
    codes = np.concatenate([np.load(calls / f"{head}.{c}.npz")["out:logits"] for c in range(len(ids) - 127)])
    found = torch.log_softmax(torch.from_numpy((codes.astype(np.float64) - zero) * scale), -1)
    kld = (exact.exp() * (exact - found)).sum(-1)
    same = (exact.argmax(-1) == found.argmax(-1)).double().mean()
    return f"KLD {float(kld.mean()):.5f}, top-1 equal in {100 * float(same):.1f} % of {len(ids)} positions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", help="numbers of layers, by default the first, the middle and the last one")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--htp", default="75")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--single", type=int, default=4)
    parser.add_argument("--piece", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--emulate", nargs="+", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.emulate:
        emulate(given.checkpoint, given.htp, given.emulate)
    from sampan.convert.formats.onnx import compiled
    from sampan.static import TOKENS
    from sampan.static import compiled as made_of

    count = json.loads((given.checkpoint / "config.json").read_text())["num_hidden_layers"]
    layers = [int(n) for n in given.layers.split(",")] if given.layers else sorted({0, count // 2, count - 1})
    folder = given.folder / f"{given.quant}-v{given.htp}"
    calls = folder.with_name(f"{folder.name}.calls")
    peaks: dict[str, int] = {}
    threading.Thread(target=watch, args=(peaks,), daemon=True).start()
    make, start = compiled.compiled, time.monotonic()
    if not folder.exists():
        to_folder(given.checkpoint, folder, given.quant, given.htp, given.context)
        print(f"converted in {time.monotonic() - start:.0f} s, at most {peaks['converter'] / 1e9:.2f} GB", flush=True)
    chosen = [*layers, count]
    ids = walk(folder, chosen, given.single, calls)
    print(f"read on the processor, {time.monotonic() - start:.0f} s from the start", flush=True)
    if given.reference:
        print(f"against float32: {drift(given.checkpoint, ids, folder, calls, count)}", flush=True)
    print("| part | tokens | output | | SNR | codes that differ |\n|---|---|---|---|---|---|")
    notes = []
    for number in chosen:
        for tokens in TOKENS if given.piece else (1,):
            graph, peaks["compiler"], start = f"part-{number + 1}.{tokens}.onnx", 0, time.monotonic()
            if not (folder / made_of(graph, given.htp)).exists():
                make(folder, [graph], [given.htp], 2_000_000_000)
                nbytes = (folder / f"part-{number + 1}.data").stat().st_size
                notes.append(f"{graph}: {nbytes / 1e6:.0f} MB compiled in {time.monotonic() - start:.0f} s, "
                             f"at most {peaks['compiler'] / 1e9:.2f} GB")  # fmt: skip
            start = time.monotonic()
            kept = [calls / f"{number}.{c}.npz" for c in (range(1, 1 + given.single) if tokens == 1 else (0,))]
            command = [sys.executable, __file__, str(folder / made_of(graph, given.htp)), ".", "--htp", given.htp]
            subprocess.run([*command, "--emulate", *map(str, kept)], check=True, timeout=LIMIT)
            notes.append(f"{graph}: {(time.monotonic() - start) / len(kept):.0f} s a call in the emulator")
            part = "head" if number == count else f"layer {number}"
            for name, said in compared(folder, kept):
                print(f"| {part} | {tokens} | {name} | {said} |", flush=True)
    print("\n".join(notes))


if __name__ == "__main__":
    main()
