"""What is in a checkpoint, a GGUF file, an ONNX folder or a file of statistics, as plain data."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sampan.checkpoint import Checkpoint


def inspected(path: str, revision: str | None) -> dict[str, Any]:
    """The properties of a path or a hub id, its "types" and its "tensors"."""
    from sampan.model import find_model, names_model
    from sampan.static import is_static

    if path.endswith(".safetensors") and Path(path).is_file():
        return _statistics(Path(path))
    if is_static(Path(path)):
        return _static(Path(path))
    if names_model(path):
        model = find_model(path, revision)
        return _onnx(model) if model.is_dir() or model.suffix == ".onnx" else _gguf(model)
    from sampan.hub import open_source

    return _checkpoint(open_source(path, revision, headers_only=True))


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    from sampan.convert.binding import bind
    from sampan.convert.family import read_architecture
    from sampan.convert.tokenizer import read_tokenizer
    from sampan.errors import InputError

    config = checkpoint.config
    stored, problem = _stored(checkpoint)
    data: dict[str, Any] = {
        "checkpoint": checkpoint.source,
        "revision": checkpoint.revision,
        "architectures": config.get("architectures"),
        "shards": len(checkpoint.shards),
        "bytes": sum(s.size for s in checkpoint.shards),
        "parameters": sum(math.prod(t["shape"]) for t in stored),
    }
    try:
        family, arch = read_architecture(checkpoint, drafts=True)
        data |= {
            "family": arch.family,
            "layers": len(arch.blocks),
            "draft layers": len(arch.drafts),
            "hidden": arch.hidden,
            "vocabulary": arch.vocab,
            "context": arch.context,
            "attention": ", ".join(map(_fields, dict.fromkeys(b.attention for b in arch.blocks))),
            "ffn": [_fields(f) for f in dict.fromkeys(b.ffn for b in arch.blocks)],
            "rope": ", ".join(map(_fields, arch.ropes)) or "none",
            "tied": arch.tied,
        }
        bind(checkpoint, family, arch)
        tokenizer = read_tokenizer(checkpoint.folder, arch.vocab)
        data |= {
            "pre-tokenizer": tokenizer.pre,
            "merges": len(tokenizer.merges),
            "special tokens": {k: tokenizer.tokens[v] for k, v in tokenizer.special.items()},
            "chat template": _templates(checkpoint.folder),
        }
    except InputError as e:
        problem = problem or str(e)
    if problem:
        data["not convertible"] = problem
    data["types"] = _summary((t["type"], math.prod(t["shape"]), t["bytes"]) for t in stored)
    data["tensors"] = stored
    return data


def _stored(checkpoint: Checkpoint) -> tuple[list[dict[str, Any]], str]:
    """The weights with their storage encoding; as bare tensors, with the reason, where that cannot be told."""
    from sampan.convert.quantization import read_storage
    from sampan.errors import InputError

    try:
        weights = read_storage(checkpoint).values()
    except InputError as e:
        infos = [info for _, info in checkpoint.tensors().values()]
        return [{"name": i.name, "shape": list(i.shape), "type": i.dtype, "bytes": i.nbytes} for i in infos], str(e)
    return [
        {"name": w.name, "shape": list(w.shape), "type": w.label, "bytes": sum(p.info.nbytes for p in w.parts)}
        for w in weights
    ], ""


def _fields(value: Any) -> str:
    """`GQA(heads=4, …)`, as a dataclass prints itself."""
    return repr(value)


def _gguf(path: Path) -> dict[str, Any]:
    from sampan import gguf
    from sampan.quantize.stats import IMATRIX, TYPE
    from sampan.quantize.types import number_type_by_id

    header = gguf.read_header(path)
    data: dict[str, Any] = {"gguf": str(path), "version": header.version, "bytes": path.stat().st_size}
    for key, value in header.metadata.items():
        if value.kind == gguf.Kind.ARRAY and len(value.value) > 8:
            data[key] = f"{len(value.value)} values"
        else:
            data[key] = value.value
    if data.get(TYPE) == IMATRIX:
        told = _statistics(path)
        data |= {key: told[key] for key in ("matrices", "never seen")}
    rows = []
    for t in header.tensors:
        kind = number_type_by_id(t.type_id)
        values = math.prod(t.shape)
        nbytes = None if kind is None else values // kind.block * kind.block_bytes
        rows.append((t, kind.name if kind else f"type {t.type_id}", values, nbytes))
    data["parameters"] = sum(r[2] for r in rows)
    data["types"] = _summary((name, values, nbytes or 0) for _, name, values, nbytes in rows)
    data["tensors"] = [{"name": t.name, "shape": list(t.shape), "type": n, "bytes": b} for t, n, _, b in rows]
    return data


def _statistics(path: Path) -> dict[str, Any]:
    """What sampan calibrate wrote; an imatrix is a GGUF file."""
    from sampan.quantize.stats import open_stats

    stats = open_stats(path)
    unseen = sum(n == 0 for e in stats.entries.values() for n in e.counts)
    data: dict[str, Any] = {"statistics": str(path), "bytes": path.stat().st_size, **stats.about}
    data |= {"matrices": sum(len(e.counts) for e in stats.entries.values()), "never seen": unseen}
    data["types"] = _summary(("f32", e.values, 4 * e.values) for e in stats.entries.values())
    data["tensors"] = [
        {"name": n, "shape": [len(e.counts), e.values // len(e.counts)], "type": "f32", "bytes": 4 * e.values}
        for n, e in stats.entries.items()
    ]
    return data


def _onnx(path: Path) -> dict[str, Any]:
    from sampan.onnx import bits_per_weight, home, read_graph, roles, slow_products, unique
    from sampan.validate.artifact import read_manifest, stored_tensors

    graph, manifest = read_graph(path), read_manifest(path)
    model = graph.model
    inputs, outputs = _values(model.graph.input), _values(model.graph.output)
    genai = _json(graph.path / "genai_config.json").get("model")
    genai = genai if isinstance(genai, dict) else {}
    caches = {n: v for n, v in inputs.items() if "past" in n}
    slow = len(slow_products(graph))
    data: dict[str, Any] = {
        "onnx": str(path),
        "bytes": graph.nbytes,
        "external data": {p.name: n for p, n in graph.files.items()} or None,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir version": model.ir_version,
        "scheme": manifest.get("scheme"),
        "family": manifest.get("family") or genai.get("type"),
        "nodes": dict(Counter(n.op_type for n in model.graph.node).most_common()),
        "slow": f"{slow} products of 8 or 2 bits at accuracy level 0: about 300 times slower" if slow else None,
        "inputs": {n: v for n, v in inputs.items() if n not in caches},
        "outputs": {n: v for n, v in outputs.items() if "present" not in n},
        "cache": f"{len(caches)} of {' or '.join(sorted(set(caches.values())))}" if caches else None,
        "context": genai.get("context_length"),
        "tokenizer": _tokenizer(home(path)),
        "chat template": _templates(home(path)),
    }
    stored = stored_tensors(graph, manifest).values()
    rows = [(t.name, t.shape, t.type.name, math.prod(t.shape), t.nbytes) for t in stored]
    if rows:
        data["bits per weight"] = round(8 * sum(r[4] for r in rows) / sum(r[3] for r in rows), 4)
    else:
        weights, beside, tables = roles(graph)
        data["bits per weight"] = round(bits_per_weight(graph), 4)
        for a in unique(graph.arrays.values()):
            values, kind = math.prod(a.shape), a.dtype
            if a.name in weights:
                bits, block = weights[a.name]
                values, kind = 8 * a.nbytes // max(1, bits), f"{bits} bits, block {block}"
            elif a.name in beside or a.name in tables:
                kind += " (scales, zero points)" if a.name in beside else " (rotary tables)"
            rows.append((a.name, a.shape, kind, values, a.nbytes))
    data["types"] = _summary((kind, values, nbytes) for _, _, kind, values, nbytes in rows)
    data["tensors"] = [{"name": n, "shape": list(s), "type": k, "bytes": b} for n, s, k, _, b in rows]
    return {k: v for k, v in data.items() if v is not None}


def _static(path: Path) -> dict[str, Any]:
    """A folder for an NPU: each part's graphs, data and what was compiled of them, the scales at the borders."""
    from sampan import rknn
    from sampan.files import size_of, there
    from sampan.onnx import read_graph, unique
    from sampan.qnn import contexts
    from sampan.static import compiled, compiled_for, read_layout, read_quantities
    from sampan.validate.artifact import read_manifest

    layout, manifest = read_layout(path), read_manifest(path)
    quantities = {} if layout.type else read_quantities(path)
    versions, rows, parts = compiled_for(path, layout), [], {}
    nbytes = sum(f.stat().st_size for f in path.iterdir() if f.is_file())
    for n, names in enumerate(layout.parts):
        graphs = {tokens: read_graph(path / name) for tokens, name in names.items()}
        arrays = unique(graphs[1].arrays.values())
        rows += [(f"part {n + 1}{a.name}", a.shape, a.dtype, math.prod(a.shape), a.nbytes) for a in arrays]
        sizes: dict[str, int] = {name: size_of(path / name) for name in names.values()}
        sizes |= {file.name: size for graph in graphs.values() for file, size in graph.files.items()}
        for v in versions:
            made = [compiled(name, v) for name in names.values()]
            files = [*made, *(f for graph in made for f in contexts(path / graph))]
            sizes[f"HTP v{v}"] = sum(size_of(path / f) for f in files)
        if layout.type:
            files = [rknn.compiled(name, layout.target) for name in names.values()]
            sizes[layout.target] = sum(size_of(path / f) for f in files if there(path / f))
        parts[f"part {n + 1}"] = sizes
    borders = [n for n in quantities if n in ("hidden", "mask", "logits") or n.startswith(("present_", "cos", "sin"))]
    data: dict[str, Any] = {
        "onnx": str(path),
        "bytes": nbytes,
        "target": layout.target,
        "HTP versions": versions or None,
        "scheme": manifest.get("scheme"),
        "family": manifest.get("family"),
        "context": layout.context,
        "tokens of a call": list(layout.tokens),
        **parts,
        "activations": layout.type or dict(Counter(f"{q[0]} bits" for q in quantities.values())),
        "scales": {n: f"{quantities[n][1]:.6g}" for n in borders} or None,
        "tokenizer": _tokenizer(path),
        "chat template": _templates(path),
    }
    data["types"] = _summary((kind, values, size) for _, _, kind, values, size in rows)
    data["tensors"] = [{"name": n, "shape": list(s), "type": k, "bytes": b} for n, s, k, _, b in rows]
    return {k: v for k, v in data.items() if v is not None}


def _values(values: Any) -> dict[str, str]:
    """Input or output → `int64 [1, sequence]`."""
    from onnx import TensorProto

    found = {}
    for v in values:
        t = v.type.tensor_type
        known = t.elem_type in TensorProto.DataType.values()
        kind = TensorProto.DataType.Name(t.elem_type).lower() if known else f"type {t.elem_type}"
        found[v.name] = f"{kind} [{', '.join(d.dim_param or str(d.dim_value) for d in t.shape.dim)}]"
    return found


def _json(path: Path) -> dict[str, Any]:
    from sampan.files import read_json_if_there

    return read_json_if_there(path)


def _templates(folder: Path) -> bool | list[str]:
    """Whether there is one, or the names of several."""
    from sampan.chat_template import DEFAULT, read_templates

    names = list(read_templates(folder))
    return names if names not in ([], [DEFAULT]) else bool(names)


def _tokenizer(folder: Path) -> str | None:
    model = _json(folder / "tokenizer.json").get("model")
    if not isinstance(model, dict):
        return None
    vocab = model.get("vocab")
    return f"{model.get('type')}, {len(vocab) if isinstance(vocab, (dict, list)) else 0} tokens"


def _summary(rows: Any) -> dict[str, dict[str, int]]:
    tensors: Counter[str] = Counter()
    values: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for name, n, size in rows:
        tensors[name] += 1
        values[name] += n
        nbytes[name] += size
    return {k: {"tensors": tensors[k], "values": values[k], "bytes": nbytes[k]} for k in sorted(tensors)}
