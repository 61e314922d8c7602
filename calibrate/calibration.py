"""One pass of a model in llama.cpp over a text: sums of squares of what every matrix is multiplied with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampan.artifact import manifest_path
from sampan.chat_template import named_templates, named_tokens
from sampan.errors import InputError, wrong
from sampan.files import read_json_if_there
from sampan.model import names_model
from sampan.quantize.stats import Sums, of_shards, write_stats
from sampan.runtime import EngineOptions
from sampan.runtime.engines import llama
from sampan.validate.artifact import open_gguf
from sampan.validate.chat import own_text
from sampan.validate.reference import Bars, find_reference
from sampan.validate.windows import user_texts

from .text import SIZE, built_in, digest, windows

AT_ONCE = 128  # tokens; the engine holds their logits, 78 MB at 152k words
RARE = 16  # an expert that saw fewer tokens is named
SUFFIXES = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """`experts`: of how many experts, over all layers. `unseen`, `rare`: (layer, expert) that no token, or that fewer
    than RARE tokens went to.
    """

    tokens: int
    matrices: int
    types: tuple[str, ...]  # of the model that was run
    experts: int
    unseen: tuple[tuple[int, int], ...]
    rare: tuple[tuple[int, int], ...]


def calibrate(
    source: str,
    out: Path,
    bars: Bars,
    *,
    texts: Sequence[Path] = (),
    revision: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> Calibrated:
    """Write the statistics of a checkpoint (folder or hub id) or a GGUF file; `texts`: files in place of our own text.

    A checkpoint runs as the artifact that `sampan validate` compares with. Memory is that of the engine and eight bytes
    for each column of each matrix. Raises InputError for bad input.
    """
    _check_output(out, source, overwrite)
    if Path(source).is_dir() and names_model(source):
        raise wrong(source, "a checkpoint or a GGUF file", "a folder of a model that runs")
    given = user_texts(texts)
    model = find_reference(source, revision, 0, bars).artifact
    options = EngineOptions(
        context=SIZE, kv="f32", flash_attention=False, threads=threads, record_inputs=True
    )  # fmt: skip
    engine = llama.open(model, options)
    try:
        named = given or built_in(_renderer(engine.metadata()))
        cut = windows([engine.tokenize(t, special=True, around=True) for t in named.values()])
        if not cut:
            raise wrong("the text", "at least 32 tokens", "fewer", "give a longer --text")
        found = _run(engine, cut, bars)
    finally:
        engine.close()
    for name, sums in found.items():
        if not np.isfinite(sums.values).all():
            raise InputError(f"{model}: {name}: its inputs are no numbers; `sampan validate` looks for damaged weights")
    tokens = sum(map(len, cut))
    about = {
        "source": source,
        **_content(model),
        "text": ", ".join(named),
        "text_sha256": digest(named),
        "tokens": str(tokens),
    }
    write_stats(out, found, about, SIZE)
    return _summary(found, tokens, tuple(sorted(open_gguf(model).types)))


def _check_output(out: Path, source: str, overwrite: bool) -> None:
    if out.suffix not in SUFFIXES:
        raise wrong("--output", f"a name that ends with {' or '.join(SUFFIXES)}", out.name)
    if out.is_dir() or not out.parent.is_dir():
        raise wrong("--output", "a file name in a folder that exists", out)
    given = Path(source)
    inputs = [given, *given.iterdir()] if given.is_dir() else [given]
    if os.path.realpath(out) in map(os.path.realpath, inputs):
        raise wrong("--output", "a file that is not part of the source", out)
    if os.path.lexists(out) and not overwrite:
        raise wrong(out, "a new file name", "an existing file", "use --overwrite to replace it")


def _renderer(metadata: Mapping[str, str]) -> Any:
    """A function that renders a conversation as the model's own template has it."""
    templates = named_templates(metadata)
    roles = {k: metadata.get(f"tokenizer.{k}", "") for k in ("bos_token", "eos_token")}
    special = named_tokens(metadata, roles)
    return lambda conversation: own_text(templates, special, conversation)


def _run(engine: llama.LlamaEngine, cut: Sequence[Sequence[int]], bars: Bars) -> dict[str, Sums]:
    """Logits of every position are asked for, since llama.cpp's last layer leaves the others out."""
    with bars(sum(map(len, cut)), "calibrating", "token") as progress:
        for window in cut:
            engine.keep(0)
            for at in range(0, len(window), AT_ONCE):
                part = window[at : at + AT_ONCE]
                engine.evaluate(part, len(part))
                progress(len(part))
    return {name: Sums(values, counts) for name, (values, counts) in engine.take_inputs().items()}


def _content(model: Path) -> dict[str, str]:
    """SHA-256 over those of the checkpoint's shards, as the manifest of the artifact has them; else of the file."""
    source = read_json_if_there(manifest_path(model)).get("source")
    shards = source.get("sha256") if isinstance(source, dict) else None
    if isinstance(shards, dict) and shards:
        return {"source_sha256": of_shards({str(k): str(v) for k, v in shards.items()})}
    with model.open("rb") as f:
        return {"file_sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def _summary(found: Mapping[str, Sums], tokens: int, types: tuple[str, ...]) -> Calibrated:
    unseen, rare, experts = [], [], 0
    for name, sums in found.items():
        if name.endswith("ffn_down_exps.weight"):
            layer, experts = int(name.split(".")[1]), experts + len(sums.counts)
            unseen += [(layer, int(e)) for e in np.flatnonzero(sums.counts == 0)]
            rare += [(layer, int(e)) for e in np.flatnonzero((sums.counts > 0) & (sums.counts < RARE))]
    return Calibrated(tokens, len(found), types, experts, tuple(unseen), tuple(rare))
