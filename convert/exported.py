"""Convert through another exporter: its checked float32 graph, rewritten in our number types, as an ONNX folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from sampan.artifact import OutputFile, manifest_bytes, replaced
from sampan.checkpoint import Checkpoint
from sampan.errors import wrong
from sampan.files import read_json, read_json_if_there, there
from sampan.generation import Generation
from sampan.job import open_job, settle
from sampan.quantize import get_scheme

from . import added, trial
from .binding import Binding
from .config import Config
from .exporters import optimum
from .fill import fill
from .formats.onnx import FORMAT
from .formats.onnx.folder import as_json, search, texts
from .formats.onnx.graph import DATA_FILE
from .formats.onnx.rewrite import rewrite
from .generation import notes, resolve_ends
from .shards import Shards
from .work import cut

# model types that onnxruntime-genai knows by name; it runs any other plain decoder as llama
GENAI_TYPES = {"gemma", "gemma2", "llama", "mistral", "nemotron", "olmo", "phi", "phi3", "qwen2", "qwen3", "smollm3"}
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; the fields are those of the command line."""

    out: Path
    quant: str
    jobs: int | None = None
    max_memory: int = 256 * 10**6
    context: int | None = None
    accuracy: int | None = None
    allow_zero: bool = False
    overwrite: bool = False


def convert_exported(
    checkpoint: Checkpoint, place: Path, request: Request, progress: Callable[[int], Progress]
) -> None:
    """Export, check, rewrite, write. The float32 graph lies in a temporary folder beside the output meanwhile.

    `place`: the exporter's environment. `progress(total)` gives a function that is called with bytes done.
    """
    scheme_name = FORMAT.portable.get(request.quant, request.quant)
    scheme, out = get_scheme(scheme_name), request.out
    tokenizer = checkpoint.folder / "tokenizer.json"
    if not there(tokenizer):
        raise wrong(tokenizer, "a tokenizer", "no such file", "transformers writes one from tokenizer.model")
    data = OutputFile(out / DATA_FILE, b"", 0, folder=True)
    hashes = _hashes(checkpoint)
    identity = _identity(checkpoint, hashes, scheme_name, request)
    if settle(out, identity):
        return
    replaced(out, (data,), request.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    generation = _generation(checkpoint)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.export.", dir=out.parent) as work:
        exported = optimum.export(checkpoint, place, Path(work), request.context)
        new = rewrite(exported.graph, scheme_name, scheme, 4 if request.accuracy is None else request.accuracy)
        small = {"model.onnx": new.model, **_companions(checkpoint, new.model, exported.context, generation)}
        files = [replace(data, size=new.size)]
        files += [OutputFile(out / name, data, len(data), folder=True) for name, data in small.items()]
        jobs = request.jobs or os.cpu_count() or 1
        graph = replace(checkpoint, folder=exported.graph.parent, shards=new.shards)
        parts = cut(new.tensors, len(new.shards), jobs, request.max_memory)
        with open_job(out, tuple(files), identity, overwrite=request.overwrite) as job:
            job.records.clear()  # of another tracing
            done = progress(sum(s.size for s in new.shards))
            with trial.trial(job, out) as check:

                def step(n: int) -> None:
                    check()
                    done(n)

                source = Shards(graph, Binding((), None, {}))
                fill(parts, source, job, jobs, allow_zero=request.allow_zero, progress=step)
            manifest = {
                "manifest_version": 1,
                "sampan": version("sampan"),
                "graph": "optimum",
                "source": {"id": checkpoint.source, "revision": checkpoint.revision, "sha256": hashes},
                "family": checkpoint.config["model_type"],
                "scheme": scheme_name,
                "export": exported.record,
                "files": {f.path.name: f.size for f in files},
                "bits_per_weight": round(new.bits_per_weight, 4),
                "tensors": {t.bound.spec.name: t.type.name for t in new.matrices},
                "notes": notes(generation),
            }
            job.commit(manifest_bytes(manifest))


def _identity(checkpoint: Checkpoint, hashes: dict[str, str], scheme: str, request: Request) -> dict[str, Any]:
    """What must be the same for an output that an earlier run had decided to be this one."""
    config = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode()).hexdigest()
    asked = [scheme, request.context, request.accuracy, request.allow_zero]
    return {"version": f"{version('sampan')}, {optimum.ENVIRONMENT.pins}", "source": [hashes, config], "options": asked}


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of each shard by name, compared with the hub's."""
    found = {}
    for shard in checkpoint.shards:
        assert shard.path is not None  # noqa: S101 - only a plan is made without files
        with shard.path.open("rb") as f:
            found[shard.name] = hashlib.file_digest(f, "sha256").hexdigest()
        if shard.sha256 not in (None, found[shard.name]):
            listed = f"SHA-256 {shard.sha256} as the hub lists"
            raise wrong(shard.path, listed, found[shard.name], "delete the file and run again")
    return found


def _generation(checkpoint: Checkpoint) -> Generation:
    """Ends and sampling as for every conversion; the tokenizer's own end by its name in tokenizer.json."""
    folder = checkpoint.folder
    vocab = Config(checkpoint.config, str(folder / "config.json")).natural("vocab_size")
    text, parsed = added.content(added.read_config(folder).get("eos_token")), read_json(folder / "tokenizer.json")
    entries, model = parsed.get("added_tokens") or [], parsed.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    ids = {e.get("content"): e.get("id") for e in entries if isinstance(e, dict)} if isinstance(entries, list) else {}
    eos = ids.get(text, words.get(text) if isinstance(words, dict) else None)
    return resolve_ends(folder, vocab, eos if type(eos) is int else None)


def _companions(checkpoint: Checkpoint, model: bytes, context: int, generation: Generation) -> dict[str, bytes]:
    """Name → bytes of tokenizer, template and configurations."""
    graph = onnx.load_from_string(model).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.input, *graph.output]}
    config = Config(checkpoint.config, str(checkpoint.folder / "config.json"))
    vocab = shapes["logits"][-1] or config.natural("vocab_size")
    genai = _genai(checkpoint, config, shapes, vocab, generation, context)
    return texts(checkpoint.folder, vocab, generation) | {"genai_config.json": as_json(genai)}


def _genai(
    checkpoint: Checkpoint, config: Config, shapes: dict[str, list[int]], vocab: int, g: Generation, context: int
) -> dict[str, Any]:
    """genai_config.json, its sizes read from the graph's own inputs."""
    layers = sum(1 for n in shapes if n.startswith("past_key_values.") and n.endswith(".key"))
    generation, ends = read_json_if_there(checkpoint.folder / "generation_config.json"), list(g.ends)
    pad, bos = (generation.get(f"{k}_token_id", config.get(f"{k}_token_id")) for k in ("pad", "bos"))
    kind = config.get("model_type")
    inputs = {n: n for n in ("input_ids", "attention_mask", "position_ids") if n in shapes}
    cache = {"key_names": "%d.key", "value_names": "%d.value"}
    data: dict[str, Any] = {
        "type": kind if kind in GENAI_TYPES else "llama",
        "vocab_size": vocab,
        "context_length": context,
        "eos_token_id": ends,
        "pad_token_id": pad if type(pad) is int and pad >= 0 else ends[0],
        "decoder": {
            "filename": "model.onnx",
            "session_options": {"provider_options": []},
            "hidden_size": config.natural("hidden_size", "n_embd", "d_model"),
            "head_size": shapes["past_key_values.0.key"][3],
            "num_attention_heads": config.natural("num_attention_heads", "n_head", "n_heads"),
            "num_key_value_heads": shapes["past_key_values.0.key"][1],
            "num_hidden_layers": layers,
            "inputs": inputs | {f"past_{k}": f"past_key_values.{v}" for k, v in cache.items()},
            "outputs": {"logits": "logits"} | {f"present_{k}": f"present.{v}" for k, v in cache.items()},
        },
    }
    if type(bos) is int:
        data["bos_token_id"] = bos
    return {"model": data, "search": search(g, context, shared=False)}
