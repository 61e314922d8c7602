"""A report as text: tables that line up, the deciding line last."""

from __future__ import annotations

from typing import Any

from sampan.printable import printable
from sampan.table import table
from sampan.units import human

from .summary import MEAN, metrics
from .validation import PARTS

COLUMNS = ("kld", "top1", "rms_dp", "ppl_ratio", "ppl_reference", "ppl_candidate")
QUANTILES = ("median", "99 %", "99.9 %", "max")


def text_report(report: dict[str, Any]) -> str:
    """Every candidate's tables, the comparison, the blame, and the verdict as the last line."""
    blocks = [table(facts(report))]
    for candidate in report["candidates"]:
        blocks += _candidate(candidate)
    if "comparison" in report:
        blocks.append(printable(comparison_line(report)))
    if "blame" in report:
        blocks.append(_blame(report["blame"]))
    lines = sorted(report["candidates"], key=lambda c: c["verdict"] == report["verdict"])  # the deciding one last
    blocks.append("\n".join(printable(deciding_line(c)) for c in lines))
    return "\n\n".join(blocks)


def deciding_line(candidate: dict[str, Any]) -> str:
    """The verdict with the limit or check that decided it."""
    outcome = candidate["verdict"]
    decision = next(d for d in candidate["decisions"] if d["outcome"] == outcome)
    more = ""
    if outcome == "undecided" and decision["tokens"]:
        more = f"; about {decision['tokens']} scored tokens would decide"
    return f"{outcome}: {candidate['path']}: {decision['text']}{beside(candidate)}{more}"


def beside(candidate: dict[str, Any]) -> str:
    """The reference's own floor, for the place beside a number; nothing where the reference is exact."""
    floor = candidate["floor"]
    if floor == 0:
        return ""
    return f" (the reference's own floor: {floor if isinstance(floor, str) else f'KLD {floor:.2g}'})"


def facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What was compared with what, on which text."""
    reference = report["reference"]
    floor = reference["floor"]
    own = floor if isinstance(floor, str) else f"KLD {floor:.2g} from its own weights in float32"
    if reference["floor_experts"]:
        own += f"; {_experts(reference['floor_experts'])}"
    scored = sum(d["scored"] for d in report["domains"].values())
    runs = "transformers" if reference["engine"] == "torch" else "the engine"
    return [
        ("reference", f"{reference['source']} ({', '.join(reference['types'])}, in {runs})"),
        ("its floor", own),
        ("text", f"{', '.join(report['domains'])}: {scored} positions scored"),
    ]


def target_line(candidate: dict[str, Any]) -> str | None:
    """How a target's drift compares with that of the same integers on the processor; None where none was asked for."""
    c = candidate.get("target")
    if not c:
        return None
    line = f"KLD on {c['name']} / on the processor: {c['ratio']:.4f}"
    if c["low"] is None:
        return f"{line}; too few chunks for an interval"
    better = {"first": f"{c['name']} is better", "second": "the processor is better", "tie": "they tie"}
    return f"{line} [{c['low']:.4f}, {c['high']:.4f}]: {better[c['better']]}"


def expert_line(candidate: dict[str, Any]) -> str | None:
    """How often other experts were chosen, or why nobody knows; None for a dense model."""
    found = candidate.get("experts")
    if not found:
        return None
    return f"other experts: {found}" if isinstance(found, str) else _experts(found)


def _experts(shares: tuple[float, float]) -> str:
    anywhere, pairs = (f"{100 * share:.1f} %" for share in shares)
    return f"other experts at {anywhere} of the positions, {pairs} of all choices"


def _candidate(c: dict[str, Any]) -> list[str]:
    blocks = [f"{printable(c['path'])}: {human(c['bytes'])}, {c['bits_per_weight']:.2f} bits per weight"]
    for part, domains in c.get("drift", {}).items():
        own = "" if part == "engine" else beside(c)
        blocks += [f"drift {PARTS[part]}{own}\n" + _kld(domains), _others(domains)]
    blocks += [line for line in (target_line(c), expert_line(c)) if line]
    if c["checks"]:
        rows = []
        for check in c["checks"]:
            bad = [*check["findings"], *check["known"]]
            rows.append([check["name"], check["result"], check["checked"]])
            rows += [["", "", f"- {finding}"] for finding in bad[:10]]
        blocks.append(table(rows))
    return blocks


def _kld(domains: dict[str, Any]) -> str:
    rows: list[list[object]] = [["", "KLD", "95 % interval", *QUANTILES]]
    for name, numbers in domains.items():
        kld = numbers["kld"]
        value, span = with_interval("kld", kld)
        rows.append([label(name), value, span or "none (< 30 chunks)", *(f"{kld[q]:.4f}" for q in QUANTILES)])
    return table(rows, right="bcdefg")


def _others(domains: dict[str, Any]) -> str:
    known = metrics()
    narrow, wide = COLUMNS[-2:], COLUMNS[1:-2]  # the perplexities' own intervals stand in JSON and HTML
    titles = [cell for m in wide for cell in (known[m].title, "95 %")] + [known[m].title for m in narrow]
    rows: list[list[object]] = [["", *titles]]
    for name, numbers in domains.items():
        cells = [cell for m in wide for cell in with_interval(m, numbers[m])]
        rows.append([label(name), *cells, *(with_interval(m, numbers[m])[0] for m in narrow)])
    return table(rows, right="bcdefghijkl")


def with_interval(metric: str, number: dict[str, Any]) -> tuple[str, str]:
    """A value and its interval, which is empty where there is none, in the metric's digits."""
    digits = metrics()[metric].digits
    span = "" if number["low"] is None else f"{number['low']:.{digits}f} – {number['high']:.{digits}f}"
    return f"{number['value']:.{digits}f}", span


def label(domain: str) -> str:
    """What a row of a domain is called."""
    return "mean of domains" if domain == MEAN else domain


def comparison_line(report: dict[str, Any]) -> str:
    """Which of two candidates is better, or that they tie."""
    c = report["comparison"]
    first, second = (e["path"] for e in report["candidates"])
    line = f"KLD of {first} / {second}: {c['ratio']:.3f}"
    if c["low"] is None:
        return f"{line}; too few chunks for an interval"
    verdicts = {"first": f"{first} is better", "second": f"{second} is better", "tie": "they tie"}
    return f"{line} [{c['low']:.3f}, {c['high']:.3f}]: {verdicts[c['better']]}"


def _blame(blame: dict[str, Any]) -> str:
    blocks = [table(blame_rows(blame, partition), right="bc") for partition in ("kinds", "layers")]
    return "\n\n".join([*blocks, printable(kept(blame))])


def blame_rows(blame: dict[str, Any], partition: str) -> list[list[object]]:
    """Of weights, shares of the drift; of activations, what 8 bits add to it."""
    found = blame[partition]
    if "more" in (found[0] if found else {}):
        rows: list[list[object]] = [[partition, "KLD more at 8 bits", "activations"]]
        return rows + [[r["group"], f"{r['more']:+.5f}", r["activations"]] for r in found]
    rows = [[partition, "share of the drift", "bytes"]]
    rows += [[r["group"], f"{100 * r['share']:.1f} %", r["bytes"]] for r in found]
    return [*rows, ["sum (100 % if additive)", f"{100 * blame[f'{partition}_sum']:.1f} %", ""]]


def kept(blame: dict[str, Any]) -> str:
    """What should have more bits, in a line."""
    names = ", ".join(blame["keep"])
    if "kinds_sum" in blame:
        return f"keep at higher precision: {names or 'nothing stands out'}"
    return f"16 bits are needed, or the KLD of {blame['kld']:.5f} grows by a tenth: {names or 'nowhere'}"
