"""Charts as inline SVG: lines with axes, bars with their figures, the chain as a picture.

Colours come from the page's style sheet (``var(--...)``), so that a chart follows the
reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
SERIES = ("var(--one)", "var(--two)", "var(--three)")

Points = Sequence[Sequence[float]]


def line_chart(title: str, series: dict[str, Points], unit: str = "step") -> str:
    """Lines over a common horizontal axis; points that are not finite are left out.

    ``series`` maps a legend's words to ``[x, y]`` points.  Empty text when nothing can be drawn.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    x_ticks, y_ticks = ticks(min(0.0, *xs), max(xs)), ticks(min(ys), max(ys))

    def across(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{down(y) + 3.5:.1f}" class="tick" text-anchor="end">{number(y)}</text>'
        for y in y_ticks
    ]
    parts += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 15}" class="tick" text-anchor="middle">{number(x)}</text>'
        for x in x_ticks
    ]
    for (name, points), colour in zip(kept.items(), SERIES, strict=False):
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(points) < 12:
            parts += [
                f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.4" fill="{colour}"/>'
                for x, y in points
            ]
        x, y = points[-1]
        parts.append(f"<title>{escape(name)}: {number(y)} at {number(x)}</title>")
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)} <b>{number(points[-1][1])}</b></span>'
        for (name, points), colour in zip(kept.items(), SERIES, strict=False)
    )
    axis = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" class="tick" text-anchor="end">{escape(unit)}</text>'
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}{axis}</svg><div class="legend">{legend}</div></figure>'
    )


def bars(title: str, values: dict[str, float], total: float) -> str:
    """Horizontal bars as shares of ``total``, each with its figure."""
    if not values or total <= 0:
        return ""
    row, label, width = 22, 150, WIDTH
    room = width - label - 92
    parts = []
    for place, (name, value) in enumerate(values.items()):
        y = place * row
        length = max(1.0, value / total * room)
        parts.append(
            f'<text x="{label - 8}" y="{y + 15}" class="tick" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{label}" y="{y + 4}" width="{length:.1f}" height="14" rx="2" fill="var(--one)"/>'
            f'<text x="{label + length + 6:.1f}" y="{y + 15}" class="tick">{value:,.0f} ({value / total:.1%})</text>'
        )
    height = row * len(values) + 4
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def chain_picture(boxes: list[tuple[str, str, str]], arrows: list[tuple[int, int]]) -> str:
    """The chain from left to right: ``(name, line, line)`` boxes, arrows from parent to child.

    Arrows between neighbours are straight, all others run below as arcs.
    """
    box, gap, top, tall = 118, 26, 8, 58
    width = len(boxes) * (box + gap) - gap + 4
    spans = [child - parent for parent, child in arrows if child - parent > 1]
    depth = 16 + 11 * max(spans, default=0)
    height = top + tall + depth
    parts = [
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
        'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="var(--faint)"/></marker></defs>'
    ]
    for place, (name, first, second) in enumerate(boxes):
        x = 2 + place * (box + gap)
        parts.append(
            f'<rect x="{x}" y="{top}" width="{box}" height="{tall}" rx="8" class="box"/>'
            f'<text x="{x + box / 2}" y="{top + 21}" text-anchor="middle" class="name">{escape(name)}</text>'
            f'<text x="{x + box / 2}" y="{top + 37}" text-anchor="middle" class="tick">{escape(first)}</text>'
            f'<text x="{x + box / 2}" y="{top + 51}" text-anchor="middle" class="tick">{escape(second)}</text>'
        )
    for parent, child in arrows:
        start, end = 2 + parent * (box + gap), 2 + child * (box + gap)
        if child - parent == 1:
            path = f"M{start + box} {top + tall / 2}H{end - 1}"
        else:
            low = top + tall + 6 + 11 * (child - parent)
            # Off the middle, so that arcs which share a box can be told apart.
            begin = start + box * 0.5 + 6 * (child - parent)
            finish = end + box * 0.5 - 6 * (child - parent)
            path = f"M{begin:.0f} {top + tall}C{begin:.0f} {low} {finish:.0f} {low} {finish:.0f} {top + tall + 2}"
        parts.append(f'<path d="{path}" class="arrow" marker-end="url(#head)"/>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="the chain" class="chain">{"".join(parts)}</svg>'


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values that span ``low`` to ``high``, at least two of them."""
    if high <= low:
        high, low = low + (abs(low) or 1.0) * 0.5, low - (abs(low) or 1.0) * 0.5
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def number(value: float) -> str:
    """A figure for an axis or a legend: few digits, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4g}"
