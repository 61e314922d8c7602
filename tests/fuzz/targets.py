"""One target for each reader: how its inputs are made wrong, and what is driven with them.

A target is `break_(random, folder)`, which damages a fresh copy of a valid input, and `drive(folder)`, which may raise
InputError and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

from fuzz import mutate

from sampan.errors import InputError


@dataclass(frozen=True, slots=True)
class Target:
    """`cases` of an everyday length of the slow set."""

    break_: Callable[[Random, Path], object]
    drive: Callable[[Path], object]
    cases: int


def command(*argv: str) -> None:
    """The command line in this process: exit codes 0 and 2, and with 2 one line that can be printed."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv, code = ["sampan", *argv], 0
    try:
        from sampan.cli import main

        prepare = mock.patch("sampan.cli.prepare_streams")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), prepare:
            main()
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        sys.argv = before
    said = err.getvalue()
    if code not in (0, 2):
        if argv[0] != "--debug":
            command("--debug", *argv)  # says where
        raise AssertionError(f"exit {code}: {said}")
    if code == 2 and (len(said.splitlines()) != 1 or len(said) > 2000):
        raise AssertionError(f"not one line: {said!r}")
    if not all(line.isprintable() for line in [*said.split("\n"), *out.getvalue().split("\n")]):
        raise AssertionError(f"not printable: {said!r} {out.getvalue()!r}")


def both(folder: Path) -> None:
    """A checkpoint: shown, and planned for both formats."""
    command("inspect", str(folder))
    command("convert", str(folder), "--plan", "-o", str(folder.parent / "x.gguf"))
    command("convert", str(folder), "--plan", "--to", "onnx", "-o", str(folder.parent / "x"))


def json_file(*names: str) -> Callable[[Random, Path], object]:
    """One of these files, those that are there."""

    def damage(random: Random, folder: Path) -> None:
        path = folder / random.choice([n for n in names if (folder / n).exists()])
        path.write_bytes(mutate.text(random, json.loads(path.read_bytes())))

    return damage


def index(random: Random, folder: Path) -> None:
    from sampan.checkpoint import open_folder

    names = list(open_folder(folder).tensors())
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    document = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_bytes(mutate.text(random, document))


def header(random: Random, folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    document, rest = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    changed = mutate.text(random, document)
    size = len(changed) if random.random() < 0.9 else random.choice((0, 7, 2**31, 2**64 - 1))
    path.write_bytes(struct.pack("<Q", size) + changed + rest[: random.choice((len(rest), len(rest), 0, 100))])


def ranks(random: Random, folder: Path) -> None:
    if random.random() < 0.5:
        json_file("tokenizer_config.json", "generation_config.json")(random, folder)
        return
    path = folder / "tiktoken.model"
    lines = path.read_bytes().split(b"\n")
    at = random.randrange(len(lines))
    act = random.randrange(4)
    if act == 0:
        lines[at] = mutate.data(random, lines[at])
    elif act == 1:
        lines.insert(at, random.choice(lines))
    elif act == 2:
        del lines[at]
    path.write_bytes(b"\n".join(lines) if act < 3 else mutate.data(random, path.read_bytes()))


def pieces(random: Random, folder: Path) -> None:
    """tokenizer.model: bytes, whole pieces, or settings."""
    if random.random() < 0.3:
        json_file("tokenizer_config.json", "generation_config.json")(random, folder)
    path = folder / "tokenizer.model"
    raw = path.read_bytes()
    act, at = random.randrange(4), random.randrange(len(raw))
    if act == 0:
        raw = mutate.data(random, raw)
    elif act == 1:  # the settings stand at the end
        raw = raw[:-40] + mutate.data(random, raw[-40:])
    elif act == 2:
        raw = (
            raw[:at]
            + random.choice((raw[at - 12 : at], b"\x0a\x00", b"\x12\x02\x18\x01", b"\x0a\xff\xff\x7f"))
            + raw[at:]
        )
    else:
        raw = raw[:at]
    path.write_bytes(raw)


def gguf(random: Random, folder: Path) -> None:
    path = folder / "x.gguf"
    raw = path.read_bytes()
    start = random.choice((64, 400, 2000, len(raw)))  # most of it is words and data
    path.write_bytes(mutate.data(random, raw[:start]) + raw[start:])


def read_gguf(folder: Path) -> None:
    from sampan.validate.artifact import open_gguf

    command("inspect", str(folder / "x.gguf"), "--tensors")
    open_gguf(folder / "x.gguf")


def onnx(random: Random, folder: Path) -> None:
    act = random.randrange(5)
    if act <= 2:
        json_file("manifest.json", "genai_config.json", "tokenizer.json", "generation_config.json")(random, folder)
        return
    from onnx import ModelProto

    path = folder / "model.onnx"
    raw = path.read_bytes()
    if act == 3:
        path.write_bytes(mutate.data(random, raw))
        return
    model = ModelProto.FromString(raw)
    graph = model.graph
    for _ in range(random.choice((1, 3))):
        tensor = random.choice(graph.initializer)
        node = random.choice(graph.node)
        act = random.randrange(9)
        if act == 0:
            tensor.dims[:] = random.choice(([], [0], [-1], [2**62] * 3, [1] * 200, [2**31, 2**31]))
        elif act == 1 and tensor.external_data:
            entry = random.choice(tensor.external_data)
            entry.value = random.choice(
                ("", "../x", "/dev/zero", "-1", "9" * 30, "a\0b", "model.onnx", "1.5", "x" * 500)
            )
        elif act == 2 and tensor.external_data:
            random.choice(tensor.external_data).key = random.choice(("location", "offset", "x"))
        elif act == 3:
            tensor.data_type = random.choice((0, 1, 8, 99, -1, 2**31 - 1))
        elif act == 4:
            tensor.name = random.choice((random.choice(graph.initializer).name, "", "a\nb\x1b"))
        elif act == 5:
            del node.input[random.randrange(len(node.input) + 1) :]
        elif act == 6 and node.attribute:
            attribute = random.choice(node.attribute)
            attribute.i = random.choice((0, -1, 2**63 - 1, 3))
        elif act == 7:
            del node.output[:]
            node.op_type = random.choice(("", "MatMulNBits", "GroupQueryAttention", "Identity", "QMoE", "Cast"))
        else:
            random.choice(list(graph.output)).type.tensor_type.elem_type = random.choice((0, 77, 10))
    path.write_bytes(model.SerializeToString())


def read_onnx(folder: Path) -> None:
    from sampan.runtime import EngineOptions, open
    from sampan.validate.artifact import open_onnx

    command("inspect", str(folder), "--tensors")
    with contextlib.suppress(InputError):
        open_onnx(folder)
    with open(folder, EngineOptions(vocabulary_only=True)) as session:
        session.metadata.items()
        ids = session.tokenize("x <|im_end|> 首都")
        session.detokenize(ids)


PIECES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**10 }}", "{{ '%1000000000d' % 1 }}",
    "{{ messages | tojson(indent=9) }}", "{{ 1 // 0 }}", "{{ range(10**30) }}", "{{ messages[5].content.x }}",
    "{{ ''.__class__.__mro__ }}", "{{ [].append }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set x = namespace(a=messages) %}{% set x.a = [x.a] %}{{ x.a }}", "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}", "{% if %}", "{% endfor %}", "{{", "%}", "\0", "\ud7ff", "{#",
    "{{ messages | map(attribute='content') | list }}", "{% include 'x' %}", "{{ ('x' * 99999) | center(10**9) }}",
    "{{ messages|join('x' * 10**8) }}", "{{ 9**9**9 }}", "{{ lipsum(10**6) }}", "{{ cycler }}",
)  # fmt: skip


def template(random: Random, folder: Path) -> None:
    path = folder / random.choice(sorted(p.name for p in folder.glob("*.jinja")))
    text = path.read_text()
    for _ in range(random.choice((1, 1, 2))):
        between = [0, *(m.end() for m in re.finditer("[%}]}", text))]  # where a piece is a tag of its own
        at = random.choice(between) if random.random() < 0.8 else random.randrange(len(text) + 1)
        end = min(len(text), at + random.choice((0, 0, 1, 10, 200)))
        text = text[:at] + random.choice((*PIECES, "", text[at:end] * 2)) + text[end:]
    raw = text.encode("utf-8", "surrogatepass")
    (folder / "broken").write_bytes(mutate.data(random, raw) if random.random() < 0.2 else raw)


def read_template(folder: Path) -> None:
    from sampan.files import read_text
    from sampan.runtime.chat import render

    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "z"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    text = render(read_text(folder / "broken"), messages, tools, {"bos_token": "<s>", "eos_token": "</s>"})
    assert len(text) <= 10**7


SOURCE = Path(__file__).parents[1] / "fixtures" / "tiny-qwen3"


def journal(random: Random, folder: Path) -> None:
    path = folder / "x.gguf.unfinished" / "sampan.journal"
    raw = path.read_bytes()
    lines = raw.splitlines(keepends=True)
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    act = random.randrange(4)
    if act == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif act == 1:
        lines.insert(other, lines[at])
    elif act == 2:
        del lines[at]
    path.write_bytes(b"".join(lines) if act < 3 else mutate.data(random, raw))


def finish(folder: Path) -> None:
    """The same command goes on behind the damage, or begins again: the bytes are those of an undisturbed run."""
    command("convert", str(SOURCE), "--quant", "q8_0", "-o", str(folder / "x.gguf"))
    assert (folder / "x.gguf").read_bytes() == (folder / "whole.gguf").read_bytes(), "wrong bytes"


TARGETS = {
    "config": Target(json_file("config.json"), both, 250),
    "index": Target(index, lambda f: command("inspect", str(f)), 300),
    "header": Target(header, lambda f: command("inspect", str(f)), 300),
    "tokenizer": Target(json_file("tokenizer.json", "tokenizer_config.json", "generation_config.json"), both, 150),
    "tiktoken": Target(ranks, both, 100),
    "pieces": Target(pieces, both, 100),
    "gguf": Target(gguf, read_gguf, 500),
    "onnx": Target(onnx, read_onnx, 400),
    "template": Target(template, read_template, 80),
    "journal": Target(journal, finish, 40),
}
