"""What the outputs of a checkpoint would ask of a device: plans of every format and scheme, and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sampan.checkpoint import Checkpoint
from sampan.demand import Demand
from sampan.errors import InputError
from sampan.quantize import Scheme, get_scheme, tensor_type
from sampan.registry import load_all

from .architecture import EMBEDDING, HEAD, LOOKED_UP, Architecture, MoE, Recurrent
from .binding import bind
from .family import read_architecture
from .plan import Format, Plan, PlannedTensor, Request
from .tokenizer import Tokenizer, read_tokenizer

MOST_BITS = 9  # of a weight, by the scheme's default type: more is for reference, not for devices
PORTABLE, ALL = ("int4", "int8"), "all"
FORMATS = "sampan.convert.formats"


@dataclass(frozen=True, slots=True)
class Choice:
    """A format, the NPU that it is compiled for or None, an exact scheme: what that asks for, or why it cannot be."""

    format: str
    target: str | None
    scheme: str
    demand: Demand | None
    refused: str = ""


def choices(
    checkpoint: Checkpoint,
    context: int | None,
    targets: Sequence[str],
    quant: Sequence[str] = PORTABLE,
    known: Collection[tuple[str, str | None, str]] = (),
) -> Iterator[Choice]:
    """Every format, for the processor and for `targets`, with the schemes of `quant` that it holds.

    `context`: None for the model's own, at most a format's default. `quant`: schemes, or `all` that are quantised.
    `known`: format, target and scheme of choices that are not wanted again.
    """
    schemes: dict[str, Scheme] = load_all("sampan.quantize.schemes", "SCHEME")
    formats: dict[str, Format] = load_all(FORMATS, "FORMAT")
    for q in quant:
        if q != ALL and not any(q in f.portable for f in formats.values()):
            get_scheme(q)
    tokenizer: Tokenizer | None = None
    for name, usual in formats.items():
        for target in (None, *(targets if usual.targets else ())):
            try:
                form = usual if target is None or usual.targets is None else usual.targets(usual, target)
                if target is not None and not form.copies:
                    raise InputError(f"--target {target}: what its compiled graphs take on a device is not known")
                family, arch = read_architecture(checkpoint, drafts=form.drafts)
                binding = bind(checkpoint, family, arch)
                tokenizer = tokenizer or read_tokenizer(checkpoint.folder, arch.vocab)
            except InputError as e:
                if (name, target, "") not in known:
                    yield Choice(name, target, "", None, str(e))
                continue
            wanted = _small(form, schemes) if ALL in quant else dict.fromkeys(form.portable.get(q, q) for q in quant)
            for scheme in wanted:
                if form.holds(schemes[scheme]) and (name, target, scheme) not in known:
                    request = Request(
                        Path(f"{name}.{scheme}"), scheme, schemes[scheme], dry=True, tokenizer=tokenizer,
                        context=context if form.positions else None,
                    )  # fmt: skip
                    planned = partial(form.plan, checkpoint, family, arch, binding, request)
                    yield Choice(name, target, scheme, *_asked(form, planned))


def _asked(form: Format, planned: Callable[[], Plan]) -> tuple[Demand | None, str]:
    """What it asks for, or None and why it cannot be."""
    try:
        return demand(planned(), form), ""
    except InputError as e:
        return None, str(e)


def _small(form: Format, schemes: dict[str, Scheme]) -> list[str]:
    """The quantised schemes that a format holds."""
    return [n for n, s in schemes.items() if form.holds(s) and not s.native and tensor_type(s.default).bits < MOST_BITS]


def demand(plan: Plan, form: Format) -> Demand:
    """What a planned output asks for."""
    arch = plan.arch
    kept = [form.kept(b.attention) for b in arch.blocks]
    used = [t for t in plan.tensors if t.bound.spec.layer < len(arch.blocks)]  # drafts are read on demand
    head = EMBEDDING if arch.tied else HEAD
    read = products = last = 0
    for tensor in used:
        share = _share(arch, tensor)
        read += round(form.compiled(plan, tensor) * share)
        if _looked_up(arch, tensor):
            continue
        if head in _names(tensor):
            last += _products(tensor)
        else:
            products += round(_products(tensor) * share)
    attention = sum(
        k.width * b.attention.heads for k, b in zip(kept, arch.blocks, strict=True)
        if not isinstance(b.attention, Recurrent)
    )  # fmt: skip
    files, weights = plan.nbytes, sum(t.nbytes for t in used)
    parts = _parts(plan, form) if form.copies else ()
    if parts:
        data = sum(plan.files[n].size for n in {t.file for t in plan.tensors} - {0})
        files = weights = plan.nbytes - data + form.copies * sum(parts)
    values = sum(t.bound.rows * t.bound.columns for t in plan.tensors)
    experts = [b.ffn for b in arch.blocks if isinstance(b.ffn, MoE)]
    inner = [3 * arch.dense_width, *(e.used * (arch.hidden + 3 * e.width) for e in experts)]
    return Demand(
        files=files,
        weights=weights, cell=sum(k.cell for k in kept), state=sum(k.state for k in kept), read=read,
        products=products, head=last, attention=attention, words=arch.vocab, hidden=arch.hidden,
        inner=max(inner), bits=8 * sum(form.compiled(plan, t) for t in plan.tensors) / values, parts=parts,
    )  # fmt: skip


def _names(tensor: PlannedTensor) -> list[str]:
    """The canonical tensors that it is made of."""
    return [s.name for s in tensor.slices] or [tensor.bound.spec.name]


def _share(arch: Architecture, tensor: PlannedTensor) -> float:
    """How much of a tensor one further token reads: the experts that are chosen, one row of an embedding."""
    layer = tensor.bound.spec.layer
    experts = _names(tensor)[0].endswith("_exps.weight")
    if experts and layer >= 0 and isinstance(moe := arch.blocks[layer].ffn, MoE):
        return moe.used / moe.experts
    return 1 / tensor.bound.rows if _looked_up(arch, tensor) else 1


def _looked_up(arch: Architecture, tensor: PlannedTensor) -> bool:
    """Whether it is an embedding and no head."""
    name = _names(tensor)[0]
    return name == LOOKED_UP or (name == EMBEDDING and not arch.tied)


def _products(tensor: PlannedTensor) -> int:
    """Multiplications of one token with all of a matrix; vectors are next to nothing."""
    rows, columns = tensor.bound.rows, tensor.bound.columns
    return rows * columns if rows > 1 and columns > 1 else 0


def _parts(plan: Plan, form: Format) -> tuple[int, ...]:
    """Bytes of each part's compiled weights; the first file is not compiled, it is looked up in."""
    parts: dict[int, int] = {}
    for t in plan.tensors:
        if t.file:
            parts[t.file] = parts.get(t.file, 0) + form.compiled(plan, t)
    return tuple(parts.values())
