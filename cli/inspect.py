"""sampan inspect: what is in a checkpoint or a GGUF file."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sampan.checkpoint import Checkpoint

LONGEST = 90  # characters of a metadata value in the table


@click.command("inspect", short_help="Show architecture, types, sizes, tokenizer and template.")
@click.argument("path")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str, tensors: bool, revision: str | None, as_json: bool) -> None:
    """Show what PATH is: a checkpoint folder, a hub id, or any GGUF file. Reads headers only.

    \b
    Examples:
      sampan inspect qwen.gguf
      sampan inspect ./Qwen3-0.6B --tensors
    """
    from sampan.table import table

    if Path(path).is_file():
        data = _gguf(Path(path))
    else:
        from sampan.hub import open_source

        data = _checkpoint(open_source(path, revision, headers_only=True))
    if not tensors:
        data.pop("tensors")
    if as_json:
        click.echo(json.dumps(data, indent=1, ensure_ascii=False))
        return
    listed = data.pop("tensors", [])
    types = data.pop("types")
    click.echo(table([[k, _short(v)] for k, v in data.items()]))
    click.echo()
    rows: list[list[object]] = [["type", "tensors", "values", "bytes"]]
    rows += [[k, t["tensors"], t["values"], t["bytes"]] for k, t in types.items()]
    click.echo(table(rows, right="bcd"))
    if listed:
        click.echo()
        rows = [["tensor", "shape", "type", "bytes"]]
        rows += [[t["name"], " × ".join(map(str, t["shape"])), t["type"], t["bytes"]] for t in listed]
        click.echo(table(rows, right="bd"))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
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
        _, arch = read_architecture(checkpoint)
        data |= {
            "family": arch.family,
            "layers": len(arch.blocks),
            "hidden": arch.hidden,
            "vocabulary": arch.vocab,
            "context": arch.context,
            "attention": _fields(arch.blocks[0].attention),
            "ffn": [_fields(f) for f in dict.fromkeys(b.ffn for b in arch.blocks)],
            "rope": _fields(arch.rope),
            "tied": arch.tied,
        }
        tokenizer = read_tokenizer(checkpoint.folder, arch.vocab)
        data |= {
            "pre-tokenizer": tokenizer.pre,
            "merges": len(tokenizer.merges),
            "special tokens": {k: tokenizer.tokens[v] for k, v in tokenizer.special.items()},
            "chat template": tokenizer.chat_template is not None,
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
    from sampan.quantize.types import number_type_by_id

    header = gguf.read_header(path)
    data: dict[str, Any] = {"gguf": str(path), "version": header.version, "bytes": path.stat().st_size}
    for key, value in header.metadata.items():
        if value.kind == gguf.Kind.ARRAY and len(value.value) > 8:
            data[key] = f"{len(value.value)} values"
        else:
            data[key] = value.value
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


def _summary(rows: Any) -> dict[str, dict[str, int]]:
    tensors: Counter[str] = Counter()
    values: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for name, n, size in rows:
        tensors[name] += 1
        values[name] += n
        nbytes[name] += size
    return {k: {"tensors": tensors[k], "values": values[k], "bytes": nbytes[k]} for k in sorted(tensors)}
