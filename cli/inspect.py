"""sampan inspect: what is in a checkpoint, a GGUF file or an ONNX folder."""

from __future__ import annotations

import json

import click

from ._out import block, show_json

LONGEST = 90  # characters of a metadata value in the table


@click.command("inspect", short_help="Show architecture, types, sizes, tokenizer and template.")
@click.argument("path")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str, tensors: bool, revision: str | None, as_json: bool) -> None:
    """Show what PATH is: a checkpoint folder, a hub id, any GGUF file or ONNX folder, or what else `sampan run`
    takes. Reads headers only.

    \b
    Examples:
      sampan inspect qwen.gguf
      sampan inspect ./Qwen3-0.6B --tensors
    """
    from sampan import api
    from sampan.table import table

    data = dict(api.inspect(path, revision=revision).data)
    if not tensors:
        data.pop("tensors")
    if as_json:
        show_json(data, indent=1)
        return
    listed = data.pop("tensors", [])
    types = data.pop("types")
    block(table([row for key, value in data.items() for row in _lines(key, value)]) + "\n")
    rows: list[list[object]] = [["type", "tensors", "values", "bytes"]]
    rows += [[k, t["tensors"], t["values"], t["bytes"]] for k, t in types.items()]
    block(table(rows, right="bcd"))
    if listed:
        rows = [["tensor", "shape", "type", "bytes"]]
        rows += [[t["name"], " × ".join(map(str, t["shape"])), t["type"], t["bytes"]] for t in listed]
        block("\n" + table(rows, right="bd"))


def _lines(key: str, value: object) -> list[list[object]]:
    """A line; of named values that are too many for one, a line each."""
    if isinstance(value, dict) and len(json.dumps(value, ensure_ascii=False)) > LONGEST:
        return [["" if n else key, f"{name}: {_short(v)}"] for n, (name, v) in enumerate(value.items())]
    return [[key, _short(value)]]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
