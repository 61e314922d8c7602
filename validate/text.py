"""A report as text: tables that line up, the deciding line last."""

from __future__ import annotations

from typing import Any

from sampan.table import table
from sampan.units import human

from .summary import MEAN, metrics
from .validation import PARTS

COLUMNS = ("kld", "top1", "rms_dp", "ppl_ratio", "ppl_reference", "ppl_candidate")


def text_report(report: dict[str, Any]) -> str:
    """Every candidate's tables, the comparison, the blame, and the verdict as the last line."""
    blocks = [_head(report)]
    for candidate in report["candidates"]:
        blocks += _candidate(candidate)
    if "comparison" in report:
        blocks.append(_comparison(report))
    if "blame" in report:
        blocks.append(_blame(report["blame"]))
    blocks.append("\n".join(deciding_line(c) for c in report["candidates"]))
    return "\n\n".join(blocks)


def deciding_line(candidate: dict[str, Any]) -> str:
    """The verdict with the limit or check that decided it."""
    outcome = candidate["verdict"]
    decision = next(d for d in candidate["decisions"] if d["outcome"] == outcome)
    more = ""
    if outcome == "undecided" and decision["tokens"]:
        more = f"; about {decision['tokens']} scored tokens would decide"
    return f"{outcome}: {candidate['path']}: {decision['text']}{more}"


def _head(report: dict[str, Any]) -> str:
    floor = report["reference"]["floor"]
    own = floor if isinstance(floor, str) else f"KLD {floor:.2g} from its own weights in float32"
    scored = sum(d["scored"] for d in report["domains"].values())
    runs = "transformers" if report["reference"]["engine"] == "torch" else "the engine"
    kinds = ", ".join(report["reference"]["types"])
    rows = [
        ["reference", f"{report['reference']['source']} ({kinds}, in {runs})"],
        ["its floor", own],
        ["text", f"{', '.join(report['domains'])}: {scored} positions scored"],
    ]
    return table(rows)


def _candidate(c: dict[str, Any]) -> list[str]:
    blocks = [f"{c['path']}: {human(c['bytes'])}, {c['bits_per_weight']:.2f} bits per weight"]
    for part, domains in c.get("drift", {}).items():
        blocks.append(f"drift {PARTS[part]}\n" + _numbers(domains))
    if c.get("experts"):
        any_layer, pairs = (f"{100 * share:.1f} %" for share in c["experts"])
        blocks.append(f"other experts than the reference's: at {any_layer} of the positions, {pairs} of all choices")
    if c["checks"]:
        rows = []
        for check in c["checks"]:
            bad = check["findings"]
            rows.append([check["name"], f"{len(bad)} findings" if bad else "equal", check["checked"]])
            rows += [["", "", f"- {finding}"] for finding in bad[:10]]
        blocks.append(table(rows))
    return blocks


def _numbers(domains: dict[str, Any]) -> str:
    known = metrics()
    rows: list[list[object]] = [
        ["", *(known[m].title for m in COLUMNS[:1]), "95 % interval", "median", "99 %", "99.9 %", "max",
         *(known[m].title for m in COLUMNS[1:])]
    ]  # fmt: skip
    for name, numbers in domains.items():
        kld = numbers["kld"]
        span = "none (< 30 chunks)" if kld["low"] is None else f"{kld['low']:.5f} – {kld['high']:.5f}"
        tail = [f"{kld[q]:.4f}" for q in ("median", "99 %", "99.9 %", "max")]
        rest = [f"{numbers[m]['value']:.{known[m].digits}f}" for m in COLUMNS[1:]]
        label = "mean of domains" if name == MEAN else name
        rows.append([label, f"{kld['value']:.5f}", span, *tail, *rest])
    return table(rows, right="bcdefghijkl")


def _comparison(report: dict[str, Any]) -> str:
    c = report["comparison"]
    first, second = (e["path"] for e in report["candidates"])
    line = f"KLD of {first} / {second}: {c['ratio']:.3f}"
    if c["low"] is None:
        return f"{line}; too few chunks for an interval"
    verdicts = {"first": f"{first} is better", "second": f"{second} is better", "tie": "they tie"}
    return f"{line} [{c['low']:.3f}, {c['high']:.3f}]: {verdicts[c['better']]}"


def _blame(blame: dict[str, Any]) -> str:
    blocks = []
    for partition in ("kinds", "layers"):
        rows: list[list[object]] = [[partition, "share of the drift", "bytes"]]
        rows += [[r["group"], f"{100 * r['share']:.1f} %", r["bytes"]] for r in blame[partition]]
        rows.append(["sum (100 % if additive)", f"{100 * blame[f'{partition}_sum']:.1f} %", ""])
        blocks.append(table(rows, right="bc"))
    keep = ", ".join(blame["keep"]) or "nothing stands out"
    blocks.append(f"keep at higher precision: {keep}")
    return "\n\n".join(blocks)
