"""What a device would do with an artifact: whether it fits, and how fast it may be, from bandwidth and operations.

A range is what others' and our own measurements on other machines leave open; none of it was measured on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sampan.demand import Demand
from sampan.gguf import padded
from sampan.static import TOKENS
from sampan.units import human

from .device import Device, Npu
from .memory import CELLS, margin

PROMPT = 512  # tokens of the prompt that the upper end of a prefill is for
QUICK = 10.0  # tokens a second: faster than people read
USUAL_BITS = 4.0  # of a weight: fewer are a last resort
Fit = Literal["yes", "no", "unproved"]


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of a limit is reached, at least and at most, and who saw it."""

    low: float
    high: float
    why: str


DECODE = Share(
    0.45, 0.75, "llama.cpp on a Raspberry Pi 5 reaches 0.54 to 0.66 with 3B and 8B at 4 bits (ai-benchmarks)"
)
DECODE_NPU = Share(
    0.4, 0.9, "0.64 in Qualcomm's card of an 8B on a Snapdragon 8 Elite, 0.88 in Rockchip's of a 6B on an RK3588"
)
DECODE_HERE = Share(0.5, 0.9, "0.54 to 0.61 with one thread on an x86 (docs/plan.md), and no more than reading itself")
PREFILL = Share(0.1, 0.3, "0.11 to 0.15 on a Raspberry Pi 5 (published), 0.2 on an x86 with VNNI (docs/benchmarks.md)")
PREFILL_NPU = Share(0.3, 1.0, "of what the maker's own runtime reaches; ours compiles other graphs")
PREFILL_TOPS = Share(
    0.03, 0.15, "Rockchip's published prefill is 0.08 and 0.15 of the 6 TOPS of an RK3576 and an RK3588"
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second, None where something is not known, and how it comes about."""

    low: float | None
    high: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """`memory` in bytes at the context, all in all."""

    fits: Fit
    reason: str
    memory: int
    decode: Speed
    prefill: Speed


def needed(demand: Demand, context: int) -> int:
    """Bytes of weights, cache and the rest, as `memory.need` reckons them from a file's header."""
    cache = demand.cache(padded(context, CELLS))
    return demand.weights + cache + margin(demand.words, demand.hidden, demand.inner, context)


def predict(device: Device, demand: Demand, context: int) -> Prediction:
    """On the processor, or on the NPU for what is compiled in parts."""
    npu = device.npu if demand.parts else None
    total = needed(demand, context)
    fits, reason = _fits(device, npu, demand, context, total)
    return Prediction(
        fits, reason, total, _decode(device, npu, demand, context), _prefill(device, npu, demand, context)
    )


def _fits(device: Device, npu: Npu | None, demand: Demand, context: int, total: int) -> tuple[Fit, str]:
    cache, rest = demand.cache(padded(context, CELLS)), margin(demand.words, demand.hidden, demand.inner, context)
    parts = f"weights {human(demand.weights)}, cache {human(cache)} at {context} tokens, rest {human(rest)}"
    if device.room is None:
        return "unproved", f"{parts}; nothing tells how much memory a model may take"
    told = f"{human(total)} ({parts}) of {human(device.room)} that a model may take"
    if total > device.room:
        return "no", told
    if npu is not None:
        mapped = sum(demand.parts) * len(TOKENS)
        if npu.session.value is None:
            return "unproved", f"{told}; how much its NPU can map is not known"
        if mapped > npu.session.value:
            limit = human(npu.session.value)
            return "unproved", f"{told}; compiled parts of {human(mapped)} need more than one session of {limit}"
    return "yes", told


def _decode(device: Device, npu: Npu | None, demand: Demand, context: int) -> Speed:
    """Every further token reads the weights, the cache and the states once."""
    share = DECODE_NPU if npu else DECODE_HERE if device.measured else DECODE
    rate = device.bandwidth.value
    if rate is None:
        return Speed(None, None, f"memory bandwidth: {device.bandwidth.source}")
    full = demand.read + demand.cell * context + 2 * demand.state
    least = full if npu else demand.read + 2 * demand.state  # a static graph looks at all slots
    why = (
        f"{rate / 1e9:.1f} GB/s × {share.low:g} to {share.high:g} ÷ {_span(human(least), human(full))} that a token "
        f"reads (weights {human(demand.read)}, a full cache {human(demand.cell * context)}); {share.why}"
    )
    return Speed(rate * share.low / full, rate * share.high / least, why)


def _prefill(device: Device, npu: Npu | None, demand: Demand, context: int) -> Speed:
    """A prompt is bound by operations: a short one at the upper end, one that fills the context at the lower."""
    if npu is None:
        peak, share = device.peak, PREFILL
        what = " + ".join(f"{c.count} × {c.gigahertz:g} GHz × {c.operations or 0:g}" for c in device.computing)
        unknown = "operations of its cores: not known"
    elif npu.reached.value is not None:
        peak, share, what, unknown = npu.reached.value, PREFILL_NPU, npu.reached.source, ""
    else:
        peak, share, what, unknown = npu.tops.value, PREFILL_TOPS, npu.tops.source, f"TOPS: {npu.tops.source}"
    if peak is None:
        return Speed(None, None, device.notes[0] if device.measured else unknown)
    if npu is None:
        short = min(PROMPT, context)
        most, least = demand.operations(short) / short, demand.operations(context) / context
    else:
        each = 2 * (demand.products + demand.head + demand.attention * (context + TOKENS[0]))
        most = least = each  # all 128 tokens get logits and look at all slots
    why = (
        f"{peak / 1e12:.2f} × 10¹² operations/s × {share.low:g} to {share.high:g} ÷ "
        f"{_span(f'{most / 1e9:.2f}', f'{least / 1e9:.2f}')} × 10⁹ a token; {what}; {share.why}"
    )
    return Speed(peak * share.low / least, peak * share.high / most, why)


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True, slots=True)
class Row:
    """A choice of format, target and scheme with its prediction; `refused` says why it cannot be made."""

    format: str
    target: str | None
    scheme: str
    demand: Demand | None
    prediction: Prediction | None
    refused: str = ""


def recommend(rows: Sequence[Row], context: int) -> tuple[Row | None, str]:
    """The row to take, and why. The processor goes before an NPU, where nothing of ours ran yet."""
    there = [(r, r.demand, r.prediction) for r in rows if r.demand is not None and r.prediction is not None]
    if not there:
        return None, "nothing can be converted for this device: see the reasons"
    fitting = [t for t in there if t[2].fits == "yes" and not t[1].parts]
    if not fitting:
        row, demand, found = min(there, key=lambda t: t[2].memory)
        name = " ".join(p for p in (row.format, row.target, row.scheme) if p)
        hint = "take a smaller --context or a smaller model"
        return None, f"nothing is sure to fit: the smallest, {name}, needs {found.reason}; {hint}"
    usual = [t for t in fitting if t[1].bits >= USUAL_BITS]
    quick = [t for t in usual if (t[2].decode.low or 0) >= QUICK]
    if quick:
        row, demand, found = max(quick, key=lambda t: (t[1].bits, t[2].decode.low or 0))
        return row, (
            f"it has the most bits a weight ({demand.bits:.2f}) of what fits and still decodes at {QUICK:g} tokens/s "
            "or more at the lower end, which is faster than people read"
        )
    if not usual:
        row, demand, found = max(fitting, key=lambda t: t[1].bits)
        return row, f"nothing of {USUAL_BITS:g} bits a weight fits; this has the most of the rest, {demand.bits:.2f}"
    row, demand, found = min(usual, key=lambda t: t[1].read + t[1].cell * context)
    slow = "no speed can be told" if found.decode.low is None else f"nothing is sure to reach {QUICK:g} tokens/s"
    return row, f"{slow}, so of what fits at {USUAL_BITS:g} bits a weight or more it reads the least for a token"
