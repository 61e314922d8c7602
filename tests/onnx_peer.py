"""What the ONNX tests share: folders, plain ONNX Runtime loops, dequantised weights, and the peer's own graphs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from sampan.checkpoint import open_folder
from sampan.convert.conversion import Conversion, convert, prepare
from sampan.quantize import decode_rows

Floats = NDArray[np.float32]


def to_onnx(source: Path, out: Path, quant: str, **options: Any) -> Conversion:
    """Convert a folder to `out`, replacing it."""
    conversion = prepare(open_folder(source), out, "onnx", quant, jobs=2, **options)
    convert(conversion, overwrite=True)
    return conversion


class Plain:
    """A plain ONNX Runtime loop: the cache is copied in and out, every position's logits come back."""

    def __init__(self, folder: Path, more: Sequence[str] = (), graph: bytes | None = None) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1  # faster for tiny models
        if graph is not None:
            key = "session.model_external_initializers_file_folder_path"
            settings.add_session_config_entry(key, str(folder))
        source = graph if graph is not None else str(folder / "model.onnx")
        self.session = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
        config = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        keys = (1, config["num_key_value_heads"], 0, config["head_size"])
        past = [i for i in self.session.get_inputs() if i.name.startswith("past")]
        self.past = {i.name: keys if i.name.startswith("past_key_values") else tuple(i.shape) for i in past}
        self.more = list(more)
        self.reset()

    def reset(self) -> None:
        self.cache = {n: np.zeros(shape, np.float32) for n, shape in self.past.items()}
        self.done = 0

    def __call__(self, tokens: Sequence[int]) -> Floats:
        """Logits [n, vocab] of the next tokens; `self.found` are the further outputs."""
        total = self.done + len(tokens)
        feed = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, total), np.int64), **self.cache}
        present = [n.replace("past_key_values", "present").replace("past_", "present_") for n in self.past]
        logits, *rest = self.session.run(["logits", *present, *self.more], feed)
        self.cache = dict(zip(self.past, rest, strict=False))
        self.found = rest[len(present) :]
        self.done = total
        out: Floats = logits[0]
        return out

    def steps(self, tokens: Sequence[int]) -> Floats:
        """Token by token with the cache."""
        self.reset()
        return np.concatenate([self([t]) for t in tokens])


def dequantised(quantised: Conversion, exact: Conversion) -> Path:
    """Overwrite the weights of the float32 folder `exact` with those that `quantised` stands for."""
    source, target = (c.out / "model.onnx.data" for c in (quantised, exact))
    data = np.memmap(source, np.uint8, "r")
    places = {t.bound.spec.name: t for t in exact.plan.tensors}
    with target.open("r+b") as f:
        for t in quantised.plan.tensors:
            rows, columns = t.bound.rows, t.bound.columns
            arrays = [data[o : o + rows * r] for o, r in zip(t.offsets, t.type.part_bytes(columns), strict=True)]
            values = np.empty((rows, columns), np.float32)
            decode_rows(t.type, np.concatenate(arrays), values)
            f.seek(places[t.bound.spec.name].offsets[0])
            f.write(values.tobytes())
    return exact.out


def with_outputs(graph: bytes, suffix: str) -> tuple[bytes, list[str]]:
    """A graph with the outputs of some nodes (by the end of their names) as outputs of its own."""
    model = onnx.load_model_from_string(graph)
    names = [n.output[0] for n in model.graph.node if n.name.endswith(suffix)]
    known = {v.name: v for v in model.graph.value_info}
    model.graph.output.extend(known[n] for n in names)
    return model.SerializeToString(), names


def build_genai(source: Path, out: Path, precision: str = "int4", **extra: str) -> Path:
    """The folder that onnxruntime-genai's own builder writes for the CPU."""
    options = [f"{k}={v}" for k, v in extra.items()]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out),
               "-p", precision, "-e", "cpu", "-c", str(out.with_name(out.name + "-cache"))]  # fmt: skip
    run = subprocess.run(
        command + (["--extra_options", *options] if options else []),
        capture_output=True, text=True, timeout=900, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    shutil.rmtree(out.with_name(out.name + "-cache"), ignore_errors=True)
    return out


def relative(a: Floats, b: Floats) -> float:
    """Relative L2 of a from b."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def nbytes(folder: Path) -> int:
    """Bytes of the graph and its data."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.name.startswith("model.onnx"))


def at_level(folder: Path, level: int) -> bytes:
    """The graph of a folder with another accuracy level in every product."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    return model.SerializeToString()
