"""A report as one self-contained HTML page: no script, no font, no image from elsewhere; plots are inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from sampan.printable import printable
from sampan.units import human

from .summary import HISTOGRAM, MEAN, metrics
from .text import (
    COLUMNS,
    QUANTILES,
    beside,
    blame_rows,
    comparison_line,
    deciding_line,
    expert_line,
    facts,
    kept,
    label,
    target_line,
    with_interval,
)
from .validation import PARTS

COLOURS = ("#2563a8", "#c2571a", "#3b8551", "#8a4fa3", "#b3313f", "#5c6570")
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 200, 56, 32  # of a plot, in its own units
STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#606a76;--line:#d5dae0;--paper:#fff;--pass:#1d7a3e;
--fail:#b3261e;--open:#95620a}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--dim:#9aa5b1;--line:#39414a;--paper:#14181c;
--pass:#5cc684;--fail:#ff8a80;--open:#e8b45a}}
body{margin:0 auto;max-width:46rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}
h3{font-size:1rem;margin-bottom:.3rem}
.verdict{padding:.6rem .8rem;border-left:.4rem solid}.passed{border-color:var(--pass)}
.failed{border-color:var(--fail)}.undecided{border-color:var(--open)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}small{color:var(--dim)}
svg{width:100%;max-width:34rem;height:auto;display:block}svg text{font:14px system-ui,sans-serif;fill:var(--dim)}
.axis{stroke:var(--line)}
.key{font-size:.85rem;color:var(--dim)}
.key i{display:inline-block;width:.7rem;height:.7rem;margin:0 .3rem 0 .8rem}
"""


def html_report(report: dict[str, Any]) -> str:
    """The page, as text."""
    parts = [f"<h1>Drift from {_e(report['reference']['source'])}</h1>"]
    parts += [f'<p class="verdict {_e(c["verdict"])}">{_e(deciding_line(c))}</p>' for c in report["candidates"]]
    parts.append('<p class="key">' + "<br>".join(_e(f"{name}: {value}") for name, value in facts(report)) + "</p>")
    if "comparison" in report:
        parts.append(f"<p>{_e(comparison_line(report))}</p>")
    for candidate in report["candidates"]:
        parts += _candidate(candidate)
    if "blame" in report:
        parts += _blame(report["blame"])
    title = f"Drift from {_e(report['reference']['source'])}"
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{title}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _e(value: object) -> str:
    return html.escape(printable(value))


def _candidate(c: dict[str, Any]) -> list[str]:
    size = f"{human(c['bytes'])}, {c['bits_per_weight']:.2f} bits per weight"
    parts = [f"<h2>{_e(c['path'])}</h2>", f"<p>{_e(size)}</p>"]
    for part, domains in c.get("drift", {}).items():
        own = "" if part == "engine" else beside(c)
        parts += [f"<h3>Drift {_e(PARTS[part])}{_e(own)}</h3>", _table(domains)]
    parts += [f"<p>{_e(line)}</p>" for line in (target_line(c), expert_line(c)) if line]
    if "drift" in c:
        main = next(iter(c["drift"].values()))
        names = [n for n in main if n != MEAN]
        parts += ["<h3>KLD of each domain, with its 95 % interval</h3>", _bars(main)]
        parts += ["<h3>How the KLD of the positions is distributed</h3>", _histogram(c["histogram"]), _key(names)]
        parts += ["<h3>KLD along the position in a window</h3>", _lines(c["positions"]), _key(names)]
    if c.get("tensors"):
        parts += ["<h3>Relative error of every matrix, in the model's order</h3>", _tensors(c["tensors"])]
    for check in c["checks"]:
        parts.append(f"<h3>{_e(check['name'])}: {check['result']}</h3><p class=key>{_e(check['checked'])}</p>")
        if lines := [*check["findings"], *check["known"]]:
            parts.append("<ul>" + "".join(f"<li>{_e(line)}</li>" for line in lines) + "</ul>")
    return parts


def _table(domains: dict[str, Any]) -> str:
    """Values with their 95 % intervals below, and the quantiles of the KLD."""
    known = metrics()
    rows = [["", *(known[m].title for m in COLUMNS), *QUANTILES]]
    for name, numbers in domains.items():
        cells = []
        for m in COLUMNS:
            value, span = with_interval(m, numbers[m])
            cells.append(f"{_e(value)}<br><small>{_e(span)}</small>" if span else _e(value))
        rows.append([_e(label(name)), *cells, *(f"{numbers['kld'][q]:.4f}" for q in QUANTILES)])
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; it scrolls by itself where the screen is narrower."""
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _blame(blame: dict[str, Any]) -> list[str]:
    parts = ["<h2>Where the drift comes from</h2>"]
    parts += [_rows([[_e(cell) for cell in row] for row in blame_rows(blame, p)]) for p in ("kinds", "layers")]
    return [*parts, f"<p>{_e(kept(blame))}</p>"]


def _key(names: Sequence[str]) -> str:
    items = (f'<i style="background:{COLOURS[i % len(COLOURS)]}"></i>{_e(n)}' for i, n in enumerate(names))
    return f'<p class="key">{"".join(items)}</p>'


def _plot(body: str, label: str, top: float, ticks: Sequence[tuple[float, str]]) -> str:
    """An SVG with a vertical axis from 0 to `top` and `ticks` (x in plot units, text) below."""
    lines = []
    for i in range(5):
        y = _y(top * i / 4, top)
        lines.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * i / 4:.2g}</text>')
    lines += [f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_e(t)}</text>' for x, t in ticks]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_e(label)}">{"".join(lines)}{body}</svg>'


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 10) * (value / top if top else 0)


def _x(share: float) -> float:
    return LEFT + (WIDTH - LEFT - 10) * share


def _line(values: Sequence[float], top: float, colour: str) -> str:
    points = " ".join(f"{_x((i + 0.5) / len(values)):.1f},{_y(v, top):.1f}" for i, v in enumerate(values))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _bars(domains: dict[str, Any]) -> str:
    top = max(d["kld"]["high"] or d["kld"]["value"] for d in domains.values()) * 1.05
    step, body, ticks = 1 / len(domains), "", []
    for i, (name, numbers) in enumerate(domains.items()):
        n, x = numbers["kld"], _x((i + 0.2) * step)
        width, y = (WIDTH - LEFT) * step * 0.6, _y(n["value"], top)
        colour = COLOURS[-1] if name == MEAN else COLOURS[i % len(COLOURS)]
        body += f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_y(0, top) - y:.1f}" fill="{colour}"/>'
        if n["low"] is not None:
            m, low, high = x + width / 2, _y(n["low"], top), _y(n["high"], top)
            ends = f'x1="{m:.1f}" x2="{m:.1f}" y1="{low:.1f}" y2="{high:.1f}"'
            body += f'<line {ends} stroke="currentColor" stroke-width="2"/>'
        ticks.append((x + width / 2, name))
    return _plot(body, "KLD of each domain", top, ticks)


def _histogram(counts: dict[str, list[float]]) -> str:
    top = max(max(c) for c in counts.values())
    body = "".join(_line(c, top, COLOURS[i % len(COLOURS)]) for i, c in enumerate(counts.values()))
    first, last, _ = HISTOGRAM
    ticks = [(_x((k - first) / (last - first)), f"10^{k}") for k in range(int(first) + 1, int(last), 2)]
    return _plot(body, "share of positions by KLD", top, ticks)


def _lines(positions: dict[str, list[float]]) -> str:
    top = max(max(v) for v in positions.values())
    body = "".join(_line(v, top, COLOURS[i % len(COLOURS)]) for i, v in enumerate(positions.values()))
    return _plot(body, "KLD along the position", top, [(_x(0.03), "start"), (_x(0.97), "end")])


def _tensors(tensors: Sequence[dict[str, Any]]) -> str:
    shown = [t for t in tensors if t["relative"] > 0]
    if not shown or not all(math.isfinite(t["relative"]) for t in shown):
        return "<p>equal, or not finite: see the findings</p>"
    top = max(t["relative"] for t in shown) * 1.05
    body = "".join(
        f'<circle cx="{_x((i + 0.5) / len(shown)):.1f}" cy="{_y(t["relative"], top):.1f}" r="2.5" fill="{COLOURS[0]}">'
        f"<title>{_e(t['name'])} {_e(t['type'])}: {t['relative']:.4f}</title></circle>"
        for i, t in enumerate(shown)
    )
    return _plot(body, "relative error of the tensors", top, [(_x(0.03), "first"), (_x(0.97), "last")])
