"""Every tensor of an artifact against the checkpoint, in one pass over both, without running them.

A number that is too large by itself says little: the error of a 4-bit row depends on its values. So rows that
stand out, and some that do not, are encoded again from the checkpoint in the artifact's own type; what is more
than twice as far from the source as that is an outlier.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampan.checkpoint import Checkpoint
from sampan.convert.architecture import EMBEDDING, HEAD, Llama3Scaling
from sampan.convert.binding import Bound, Piece, arranged, bind
from sampan.convert.encoding import buffer_size, read_parts
from sampan.convert.family import read_architecture
from sampan.convert.formats.gguf import ROPE_FACTORS
from sampan.convert.plan import Format
from sampan.convert.rope import llama3_factors
from sampan.convert.weighting import weigh
from sampan.quantize import decode_rows, encode_rows
from sampan.quantize.stats import Stats
from sampan.registry import load

from .artifact import STEP, Artifact, Spans, Stored, read_rows

SPREAD = 8  # rows of every tensor that are encoded again
STAND_OUT = 3.0  # times the median row error: a row to look at
OUTLIER = 2.0  # times the error that encoding the row again gives
NOISE = 1e-6  # relative error that is nobody's fault
LISTED = 5  # rows named in a finding


@dataclass(frozen=True, slots=True)
class TensorError:
    """`relative` is RMSE(artifact − source) / RMS(source), `largest` the greatest difference."""

    name: str
    type: str
    nbytes: int
    relative: float
    largest: float


@dataclass(slots=True)
class Audit:
    """`findings` is empty when all is well; each names a tensor and what is wrong with it."""

    tensors: list[TensorError] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    nbytes: int = 0  # read, from both sides


def audit(
    checkpoint: Checkpoint,
    artifact: Artifact,
    progress: Callable[[int], None] = lambda n: None,
    jobs: int | None = None,
    stats: Stats | None = None,
) -> Audit:
    """Compare every tensor; memory is a few blocks of 4 MB for each job. `stats`: those that the artifact was made
    with, so that a row is encoded again as it was.
    """
    family, arch = read_architecture(checkpoint, drafts=artifact.drafts)
    form: Format = load("sampan.convert.formats", artifact.format, "FORMAT", "format")
    binding = bind(checkpoint, family, arch)
    tensors = (binding if stats is None else weigh(stats, form, family, arch, binding)).tensors
    bound = {b.spec.name: arranged(b, form.arrange(family, arch, b.spec)) for b in tensors}
    result = Audit()
    stored = dict(artifact.tensors)
    pairs: list[tuple[Bound, Stored]] = []
    for name, b in bound.items():
        if (t := stored.pop(name, None)) is None:
            result.findings.append(f"{name}: missing in the artifact")
        elif _shape(t.shape) != _shape(b.spec.shape):
            result.findings.append(f"{name}: expected shape {list(b.spec.shape)}, found {list(t.shape)}")
        else:
            pairs.append((b, t))
    if arch.tied and HEAD in stored:  # some converters write a tied head twice
        pairs.append((bound[EMBEDDING], stored.pop(HEAD)))
    for rope in arch.ropes:
        if isinstance(rope.scaling, Llama3Scaling) and artifact.format == "gguf":
            wanted, factors = llama3_factors(rope, rope.scaling), stored.pop(ROPE_FACTORS, None)
            result.findings += _computed(ROPE_FACTORS, wanted, factors)
    result.findings += [f"{name}: an orphan, the checkpoint has no such tensor" for name in stored]
    jobs = jobs or os.cpu_count() or 1
    with ExitStack() as files:
        shards = {n: files.enter_context(s.path.open("rb")).fileno() for n, s in enumerate(checkpoint.shards) if s.path}
        fds = {p: files.enter_context(p.open("rb")).fileno() for p in {t.path for _, t in pairs}}
        lock, left = threading.Lock(), audit_bytes(checkpoint, artifact)

        def together(group: list[tuple[Bound, Stored]]) -> list[tuple[TensorError, list[str], int]]:
            def passed(n: int) -> None:
                nonlocal left
                with lock:
                    n = min(n, left)  # scales that two pieces share are read twice
                    left -= n
                    progress(n)

            turns = {t.turn for _, t in group}
            complete = len(turns) == len(group) == group[0][1].step > 1  # else nobody would take what is kept
            spans: Spans | None = {} if complete else None
            made = [_Pair(*pair, shards, fds, spans) for pair in group]
            for _ in zip_longest(*(pair.compare(passed) for pair in made)):  # block by block
                pass
            return [pair.judge() for pair in made]

        with ThreadPoolExecutor(jobs) as threads:
            for error, findings, nbytes in chain.from_iterable(threads.map(together, _groups(pairs))):
                result.tensors.append(error)
                result.findings += findings
                result.nbytes += nbytes
    return result


def _groups(pairs: Sequence[tuple[Bound, Stored]]) -> list[list[tuple[Bound, Stored]]]:
    """Tensors whose rows take turns in one array belong together: what is read for one is there for the other."""
    groups: dict[object, list[tuple[Bound, Stored]]] = {}
    for bound, t in pairs:
        rows = t.type.part_bytes(t.columns)
        key = (t.path, t.offsets[0] - t.turn * rows[0]) if t.step > 1 else t.name
        groups.setdefault(key, []).append((bound, t))
    return list(groups.values())


def _computed(name: str, wanted: NDArray[np.float32], stored: Stored | None) -> list[str]:
    """What is wrong with a vector that comes from the config and not from the checkpoint's tensors."""
    if stored is None:
        return [f"{name}: missing in the artifact"]
    if stored.shape != wanted.shape:
        return [f"{name}: expected shape {list(wanted.shape)}, found {list(stored.shape)}"]
    with stored.path.open("rb") as f:
        found = read_rows(stored, f.fileno(), 0, stored.rows)[0]
    bad = np.flatnonzero(~(np.abs(found - wanted) <= NOISE * np.abs(wanted)))
    return [f"{name}: value {bad[0]}: expected {wanted[bad[0]]:.7g}, found {found[bad[0]]:.7g}"] if bad.size else []


def audit_bytes(checkpoint: Checkpoint, artifact: Artifact) -> int:
    """How many bytes an audit reads when every tensor is there, but for rows that stand out, which it reads again."""
    left_out = bind(checkpoint, *read_architecture(checkpoint, drafts=artifact.drafts)).left_out.values()
    source = sum(info.nbytes for _, info in checkpoint.tensors().values())
    source -= sum(info.nbytes for infos in left_out for info in infos)
    return source + sum(t.nbytes for t in artifact.tensors.values())


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones, which GGUF files may leave out."""
    return shape[next((i for i, n in enumerate(shape) if n != 1), len(shape) - 1) :]


class _Pair:
    """One tensor on both sides."""

    def __init__(
        self, bound: Bound, stored: Stored, shards: dict[int, int], fds: dict[Path, int], spans: Spans | None
    ) -> None:
        self.bound, self.stored, self.shards, self.fds, self.spans = bound, stored, shards, fds, spans
        self.columns, self.rows = bound.columns, bound.rows
        self.nbytes = 0
        self.errors, self.norms = np.empty(self.rows), np.empty(self.rows)
        self.largest = 0.0
        self.dead: list[str] = []
        self.turns: dict[tuple[int, int], NDArray[np.float32]] = {}  # rows of two pieces, read for the first

    def rows_of(self, piece: Piece) -> int:
        """How many rows of the artifact a piece makes."""
        return self.bound.stored_columns(piece) if piece.transposed else piece.rows

    def source(self, piece: Piece, start: int, rows: int) -> NDArray[np.float32]:
        """Rows of what a piece makes, float32 [rows, columns]."""
        if piece.transposed:
            whole = self._decode(piece, piece.start, piece.rows)
            return np.ascontiguousarray(whole.T[start : start + rows])
        return self._decode(piece, piece.start + start, rows)

    def _decode(self, piece: Piece, start: int, rows: int) -> NDArray[np.float32]:
        stored = piece.stored
        reads = stored.encoding.reads(stored, start, rows)
        buffers = read_parts(stored, reads, self.shards, np.empty(buffer_size(reads), np.uint8))
        self.nbytes += sum(r.total for r in reads)
        out = np.empty((rows, self.bound.stored_columns(piece)), np.float32)
        stored.encoding.decode(stored, buffers, start, out)
        for m in piece.maps:
            out = m.apply(out)
        return out

    def target(self, at: slice) -> NDArray[np.float32]:
        """Rows of the artifact."""
        count, turn = len(range(at.start, at.stop, at.step)), at.start % at.step
        self.nbytes += count * self.stored.type.row_bytes(self.columns)
        start, rows = at.start - turn, count * at.step
        found = self.turns.pop((start, rows), None)
        if found is None:
            found = read_rows(self.stored, self.fds[self.stored.path], start, rows, self.spans)
            if at.step > 1:
                self.turns[start, rows] = found
        return found[turn :: at.step]

    def rows_at(self, piece: Piece, start: int, rows: int) -> slice:
        """Where rows of what a piece makes lie in the artifact."""
        first = piece.at + start * piece.step
        return slice(first, first + (rows - 1) * piece.step + 1, piece.step)

    def compare(self, progress: Callable[[int], None]) -> Iterator[None]:
        """Errors and norms of all rows; it pauses after every block of them."""
        errors, norms = self.errors, self.norms
        for piece in self.bound.pieces:
            step = max(1, STEP // self.columns)
            made = self.rows_of(piece)
            for start in range(0, made, step):
                rows, before = min(step, made - start), self.nbytes
                x = self.source(piece, start, rows)
                at = self.rows_at(piece, start, rows)
                y = self.target(at)
                norms[at] = np.einsum("ij,ij->i", x, x)
                x -= y
                errors[at] = np.einsum("ij,ij->i", x, x)
                self.largest = max(self.largest, float(np.abs(x, out=x).max()))
                progress(self.nbytes - before)
                yield
            part = self.rows_at(piece, 0, made)
            # a zero artifact is as far from its source as the source is from zero
            if norms[part].sum() > 0 and np.allclose(errors[part], norms[part], rtol=1e-6) and self._zero(piece):
                self.dead.append(f"{self.stored.name}: nothing but zeros in rows {part.start} to {part.stop - 1}")

    def judge(self) -> tuple[TensorError, list[str], int]:
        """Error of the tensor, findings, bytes read."""
        errors, norms = self.errors, self.norms
        total = float(norms.sum())
        relative = float(np.sqrt(errors.sum() / total)) if total else float(np.sqrt(errors.sum()))
        error = TensorError(self.stored.name, self.stored.type.name, self.stored.nbytes, relative, self.largest)
        if not np.isfinite(errors).all():
            row = int(np.flatnonzero(~np.isfinite(errors))[0])
            return error, [f"{self.stored.name}: NaN or Inf in row {row}"], self.nbytes
        return error, self.dead or self._outliers(errors, norms, relative), self.nbytes

    def _zero(self, piece: Piece) -> bool:
        return not read_rows(self.stored, self.fds[self.stored.path], self.rows_at(piece, 0, 1).start, 1).any()

    def _outliers(self, errors: NDArray[np.float64], norms: NDArray[np.float64], relative: float) -> list[str]:
        ratios = np.sqrt(errors / np.maximum(norms, np.finfo(np.float64).tiny))
        spread = set(np.linspace(0, self.rows - 1, min(SPREAD, self.rows)).astype(int).tolist())
        high = np.flatnonzero(ratios > STAND_OUT * np.median(ratios) + NOISE)
        high = high[np.argsort(-ratios[high])][:64]
        bad = sorted(r for r in spread | set(high.tolist()) if self._too_far(r, float(errors[r]), float(norms[r])))
        if not bad:
            return []
        name, kind = self.stored.name, self.stored.type.name
        if spread <= set(bad):
            return [f"{name}: far from the checkpoint: relative error {relative:.3g}, more than {kind} explains"]
        rows = ", ".join(map(str, bad[:LISTED])) + (" …" if len(bad) > LISTED else "")
        worst = max(float(ratios[r]) for r in bad)
        return [f"{name}: row {rows}: relative error up to {worst:.3g}, more than {kind} explains"]

    def _too_far(self, row: int, error: float, norm: float) -> bool:
        """Whether a row is further from its source than its own type makes it."""
        piece = next(p for p in self.bound.pieces if row in range(p.at, p.at + self.rows_of(p) * p.step, p.step))
        x = self.source(piece, (row - piece.at) // piece.step, 1)
        encoded = np.empty(self.stored.type.row_bytes(self.columns), np.uint8)
        encode_rows(self.stored.type, x, encoded, piece.inputs.weights() if piece.inputs else None)
        again = np.empty_like(x)
        decode_rows(self.stored.type, encoded, again)
        own = float(((x - again).astype(np.float64) ** 2).sum())
        return error > OUTLIER**2 * own + NOISE**2 * max(norm, np.finfo(np.float64).tiny)
