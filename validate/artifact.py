"""An artifact, a GGUF file or an ONNX folder: its tensors as rows, and new GGUF files made of such tensors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sampan import gguf, onnx, registry, runtime
from sampan.artifact import manifest_path
from sampan.chat_template import named_templates, named_tokens
from sampan.checkpoint import Checkpoint
from sampan.convert.architecture import tensor_specs
from sampan.convert.family import families, read_architecture
from sampan.convert.formats.gguf import FORMAT as GGUF
from sampan.convert.formats.gguf import ROPE_FACTORS
from sampan.convert.rows import Arrangement
from sampan.errors import brief, wrong
from sampan.files import read_json_if_there
from sampan.quantize import NumberType, TensorType, decode_rows, get_scheme, number_type, tensor_type
from sampan.quantize.blocked import BLOCK_TYPES, BlockType
from sampan.quantize.types import number_type_by_id
from sampan.static import is_static, read_layout

STEP = 1 << 20  # values decoded at once
PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor. `offsets`: of its first row in each array of its type, from the start of the file.

    Its rows are the rows 0, `step`, 2 · `step`, … from there: `step` tensors take turns, and this is number `turn` of
    them. `arrangement`: how a GGUF file would have its rows, None where as they are or where that is not known.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    path: Path
    offsets: tuple[int, ...]
    step: int = 1
    turn: int = 0
    arrangement: Arrangement | None = None

    @property
    def gguf_shape(self) -> tuple[int, ...]:
        return self.arrangement.shape[-len(self.shape) :] if self.arrangement else self.shape

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.rows * self.type.row_bytes(self.columns)


@dataclass(frozen=True, slots=True)
class Artifact:
    """`architecture` is llama.cpp's name for it, empty where unknown, `special` the texts of its special tokens.

    `metadata`: the keys of a GGUF file; `manifest`: that of an ONNX folder, whose `tensors` it names.
    """

    path: Path
    format: Literal["gguf", "onnx"]
    tensors: dict[str, Stored]
    nbytes: int
    bits_per_weight: float
    types: frozenset[str]  # of its matrices
    architecture: str
    vocab: int
    experts: bool  # whether it is a mixture of experts
    templates: dict[str, str]
    special: dict[str, str]
    metadata: dict[str, gguf.Value] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    main_bits: float = 0.0  # as nominal_bits, where there are no `tensors` to count

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value."""
        found = self.metadata.get(key)
        return default if found is None else found.value

    @property
    def drafts(self) -> bool:
        """Whether it has blocks that predict further tokens."""
        return bool(self.value(f"{self.architecture}.nextn_predict_layers"))

    @property
    def nominal_bits(self) -> float:
        """Bits of the number type that holds most of the values: 4.5 for q4_k_m, whatever its embedding has."""
        values: dict[float, int] = {}
        for t in self.tensors.values():
            values[t.type.bits] = values.get(t.type.bits, 0) + math.prod(t.shape)
        return max(values, key=lambda bits: values[bits]) if values else self.main_bits or self.bits_per_weight

    @property
    def f32_bytes(self) -> int:
        """Its size with every tensor in float32."""
        return sum(4 * math.prod(t.shape) for t in self.tensors.values())


def open_artifact(path: Path) -> Artifact:
    """Open a GGUF file or an ONNX folder: headers only."""
    if is_static(path):
        return open_static(path)
    return open_onnx(path) if path.is_dir() or path.suffix == ".onnx" else open_gguf(path)


def open_gguf(path: Path) -> Artifact:
    """Read the headers; every tensor's bytes are checked to lie inside its file."""
    if not path.is_file():
        raise wrong(path, "a GGUF file or an ONNX folder", "no such file")
    paths = [path]
    if match := PART.fullmatch(path.name):
        count = int(match[2])
        paths = [path.with_name(f"{match[1]}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    metadata: dict[str, gguf.Value] = {}
    tensors: dict[str, Stored] = {}
    for part in paths:
        header = gguf.read_header(part)
        metadata = metadata or header.metadata
        size = part.stat().st_size
        for t in header.tensors:
            kind = number_type_by_id(t.type_id)
            where = f"{part}: {t.name}"
            if kind is None:
                raise wrong(where, "a number type that the gguf package knows", f"number {t.type_id}")
            if t.name in tensors:
                raise wrong(where, "each tensor once", "it in two parts")
            if not t.shape or t.shape[-1] % kind.block:
                raise wrong(where, f"rows of a multiple of {kind.block} values", f"shape {list(t.shape)}")
            stored = Stored(t.name, t.shape, kind, part, (header.data_start + t.offset,))
            if stored.offsets[0] + stored.nbytes > size:
                raise wrong(where, f"{stored.nbytes} bytes from {stored.offsets[0]}", f"a file of {size} bytes")
            tensors[t.name] = stored
    if not tensors:
        raise wrong(path, "tensors", "none")
    values = {k: v.value for k, v in metadata.items()}
    tokens = values.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    ids = {role: values.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    roles = {f"{r}_token": tokens[i] if i is not None and i < len(tokens) else "" for r, i in ids.items()}
    return Artifact(
        path, "gguf", tensors, sum(p.stat().st_size for p in paths), _bits(tensors), _types(tensors),
        architecture=str(values.get("general.architecture", "")), vocab=len(tokens),
        experts=any(len(t.shape) == 3 for t in tensors.values()),
        templates=named_templates(values), special=named_tokens(values, roles), metadata=metadata,
    )  # fmt: skip


def open_onnx(path: Path) -> Artifact:
    """Read the graph, the manifest and the tokenizer; a folder without our manifest has no `tensors`."""
    graph = onnx.read_graph(path)
    manifest = read_manifest(path)
    tensors = stored_tensors(graph, manifest)
    weights, _, _ = onnx.roles(graph)
    types = _types(tensors) or frozenset(f"{bits} bits" for bits, _ in weights.values()) or {"float"}
    with runtime.open(path, runtime.EngineOptions(vocabulary_only=True)) as session:
        templates, special, vocab = session.chat_templates, session.special_tokens, graph.logits or session.vocab
    return Artifact(
        path, "onnx", tensors, graph.nbytes, _bits(tensors) if tensors else onnx.bits_per_weight(graph),
        frozenset(types), architecture=_engine_name(manifest), vocab=vocab,
        experts=graph.experts, templates=templates, special=special, manifest=manifest,
    )  # fmt: skip


def open_static(path: Path) -> Artifact:
    """A folder for an NPU, which runs on the processor here; it places no canonical tensors."""
    layout, manifest = read_layout(path), read_manifest(path)
    with runtime.open(path, runtime.EngineOptions(vocabulary_only=True)) as session:
        templates, special = session.chat_templates, session.special_tokens
    bits, scheme = manifest.get("bits_per_weight"), str(manifest.get("scheme"))
    known = scheme in registry.names("sampan.quantize.schemes")
    return Artifact(
        path, "onnx", {}, sum(f.stat().st_size for f in path.iterdir() if f.is_file()),
        float(bits) if isinstance(bits, (int, float)) else 0.0, frozenset({scheme}),
        architecture=_engine_name(manifest), vocab=layout.vocab, experts=False, templates=templates, special=special,
        manifest=manifest, main_bits=tensor_type(get_scheme(scheme).default).bits if known else 0.0,
    )  # fmt: skip


def _engine_name(manifest: dict[str, Any]) -> str:
    """What llama.cpp calls a manifest's family, or nothing."""
    family = families().get(str(manifest.get("family")))
    return family.gguf.architecture if family and family.gguf else ""


def as_gguf(artifact: Artifact, checkpoint: Checkpoint) -> Artifact:
    """An ONNX folder of a checkpoint, its tensors with the order of rows that a GGUF file would have."""
    family, arch = read_architecture(checkpoint)
    orders = {}
    for spec in tensor_specs(arch):
        orders[spec.name] = GGUF.arrange(family, arch, spec)
        found = artifact.tensors.get(spec.name)
        if orders[spec.name] and found and found.shape != spec.shape:
            where = f"{manifest_path(artifact.path)}: {spec.name}: shape"
            raise wrong(where, list(spec.shape), list(found.shape))
    tensors = {n: replace(t, arrangement=orders.get(n)) for n, t in artifact.tensors.items()}
    return replace(artifact, tensors=tensors)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that we wrote, else nothing."""
    manifest = read_json_if_there(manifest_path(folder))
    return manifest if "sampan" in manifest else {}


def stored_tensors(graph: onnx.Graph, manifest: dict[str, Any]) -> dict[str, Stored]:
    """The canonical tensors that a manifest names, found in the graph's arrays."""
    if manifest.get("graph") != "sampan":  # another exporter's graph: nobody knows where they are
        return {}
    where = manifest_path(graph.path)
    named = manifest.get("tensors", {})
    if not isinstance(named, dict) or not all(isinstance(t, dict) for t in named.values()):
        raise wrong(f"{where}: tensors", "the place of every tensor", "none", "convert it again")
    return {name: _stored(graph, name, entry, f"{where}: {brief(name)}") for name, entry in named.items()}


def _stored(graph: onnx.Graph, name: str, entry: dict[str, Any], where: str) -> Stored:
    kind, shape, at, step = (entry.get(k) for k in ("type", "shape", "at", "step"))
    if kind not in BLOCK_TYPES and kind not in ("f32", "f16"):
        raise wrong(f"{where}: type", f"one of f32, f16, {', '.join(BLOCK_TYPES)}", brief(kind))
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        raise wrong(f"{where}: shape", "sizes above 0", brief(shape))
    if type(at) is not int or type(step) is not int or at < 0 or step < 1:
        raise wrong(f"{where}: at and step", "a first row and a distance of rows", brief([at, step]))
    kind = tensor_type(kind)
    vector = len(shape) == 1  # stored as rows of one value, so that vectors can be stacked
    columns, rows = (1, shape[0]) if vector else (shape[-1], math.prod(shape[:-1]))
    array, paths, offsets = str(entry.get("array")), set[Path](), []
    names = [array, *(array.removesuffix("weight") + n for n in ("scales", "zero_points"))]
    dtypes = (
        ("uint8", "float16", "uint8") if isinstance(kind, BlockType) else ({"f32": "float"}.get(kind.name, "float16"),)
    )
    for part, dtype, row in zip(names, dtypes, kind.part_bytes(columns), strict=False):
        found = graph.arrays.get(part)
        if found is None or found.path is None or found.dtype != dtype or found.nbytes % row:
            raise wrong(where, f"an external array {brief(part)} of {dtype}, rows of {row} bytes", _describe(found))
        if at - at % step + rows * step > found.nbytes // row or (vector and step != 1):
            raise wrong(where, f"{rows} rows from {at}, {step} apart", f"{found.nbytes // row} in {brief(part)}")
        paths.add(found.path)
        offsets.append(found.offset + at * row)
    if len(paths) != 1:
        raise wrong(where, "all of it in one data file", "several")
    return Stored(name, tuple(shape), kind, paths.pop(), tuple(offsets), step, at % step)


def _describe(array: onnx.Array | None) -> str:
    return "none" if array is None else f"{array.dtype} {list(array.shape)}"


def _bits(tensors: dict[str, Stored]) -> float:
    values = sum(math.prod(t.shape) for t in tensors.values())
    return 8 * sum(t.nbytes for t in tensors.values()) / values


def _types(tensors: dict[str, Stored]) -> frozenset[str]:
    return frozenset(t.type.name for t in tensors.values() if len(t.shape) > 1)


Spans = dict[tuple[int, int], bytes]
"""Offset and length → bytes that were read for one of two tensors that take turns, and not yet for the other."""


def read_rows(t: Stored, fd: int, start: int, rows: int, spans: Spans | None = None) -> NDArray[np.float32]:
    """Rows of a tensor, decoded, float32 [rows, columns]; `fd` is its open file."""
    out = np.empty((rows, t.columns), np.float32)
    decode_rows(t.type, read_raw(t, fd, start, rows, spans), out)
    return out


def read_raw(t: Stored, fd: int, start: int, rows: int, spans: Spans | None = None) -> NDArray[np.uint8]:
    """The stored bytes of some rows: those of each array of the type in turn."""
    parts = []
    for offset, row in zip(t.offsets, t.type.part_bytes(t.columns), strict=True):
        at, span = offset + (start * t.step - t.turn) * row, rows * t.step * row
        raw = spans.pop((at, span), None) if spans is not None else None
        if raw is None:
            raw = os.pread(fd, span, at)
            if spans is not None and t.step > 1:
                spans[at, span] = raw
        if len(raw) != span:
            raise wrong(t.path, f"{span} bytes of {t.name}", f"{len(raw)} bytes", "the file changed")
        part = np.frombuffer(raw, np.uint8)
        if t.step > 1:
            part = part.reshape(rows, t.step, row)[:, t.turn].reshape(-1)
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def chunks(t: Stored) -> Iterator[tuple[int, int]]:
    """(first row, rows) of pieces of a tensor that stay small when decoded."""
    step = max(1, STEP // t.columns)
    for start in range(0, t.rows, step):
        yield start, min(step, t.rows - start)


def f32_pieces(t: Stored, fd: int) -> Iterator[NDArray[np.float32]]:
    """All of a tensor, decoded, in the order of a GGUF file."""
    if t.arrangement is None:
        yield from (read_rows(t, fd, start, rows) for start, rows in chunks(t))
        return
    shape = t.arrangement.shape
    out = np.empty((math.prod(shape[:-1]), shape[-1]), np.float32)  # one of attention's, which are small
    for run in t.arrangement.runs:
        rows = read_rows(t, fd, run.start, run.rows)
        rows = t.arrangement.map.apply(rows) if t.arrangement.map else rows
        if run.transposed:
            out[run.at : run.at + t.columns] = rows.T
        else:
            out[run.at : run.at + run.rows * run.step : run.step] = rows
    yield out


def raw_pieces(t: Stored, fd: int) -> Iterator[NDArray[np.uint8]]:
    """All of a tensor's bytes."""
    yield from (read_raw(t, fd, start, rows) for start, rows in chunks(t))


def compose(
    out: Path, metadata: dict[str, gguf.Value], tensors: Sequence[Stored], as_f32: Callable[[Stored], bool]
) -> Path:
    """Write one GGUF file of tensors that other files hold: decoded to float32 where `as_f32`, else as they are."""
    single = {k: v for k, v in metadata.items() if not k.startswith("split.")}
    f32, infos, offset = number_type("f32"), [], 0
    for t in tensors:
        kind = f32 if as_f32(t) else t.type
        if not isinstance(kind, NumberType):
            raise AssertionError(f"{t.name}: {kind.name} cannot stand in a GGUF file")
        infos.append(gguf.Tensor(t.name, t.gguf_shape, kind.id, offset))
        offset += gguf.padded(math.prod(t.shape) // kind.block * kind.block_bytes)
    part = out.with_name(out.name + ".part")
    with part.open("wb") as f:
        f.write(gguf.encode(single, infos))
        base = f.tell()
        for t, info in zip(tensors, infos, strict=True):
            f.seek(base + info.offset)
            with t.path.open("rb") as source:
                for piece in (f32_pieces if as_f32(t) else raw_pieces)(t, source.fileno()):
                    f.write(piece.data)
        f.truncate(base + offset)
    part.replace(out)
    return out


def dequantise(source: Artifact, exact: Artifact, out: Path) -> Path:
    """The same model as a GGUF file with every tensor decoded to float32; what only such files hold is of `exact`."""
    tensors = [*source.tensors.values(), *computed(source, exact)]
    return compose(out, source.metadata or exact.metadata, tensors, lambda t: True)


def computed(source: Artifact, exact: Artifact) -> list[Stored]:
    """What a graph computes and a GGUF file stores: Llama 3's rope factors."""
    found = exact.tensors.get(ROPE_FACTORS)
    return [found] if found and source.format == "onnx" else []
