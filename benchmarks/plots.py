"""Plots as SVG files, with the report's charts (``pipeline/report/charts.py``) side by side.

GitHub shows them as pictures, which follow the reader's light or dark setting as the report does.
"""

from __future__ import annotations

import re
from html import escape

from pipeline.report.charts import HEIGHT, SERIES, WIDTH, Points, line_chart

STYLE = """
svg { --faint: #6a7784; --rule: #dfe4ea; --ink: #1d2733; --one: #2f6fb0; --two: #d2762c; --three: #4f9a5b;
  font-family: sans-serif; }
@media (prefers-color-scheme: dark) { svg { --faint: #93a1b0; --rule: #303a46; --ink: #e3e8ee; --one: #6ca8e6;
  --two: #eda066; --three: #86c890; } }
.tick { font-size: 10.5px; fill: var(--faint); } .grid { stroke: var(--rule); } .title { font-size: 12.5px; fill: var(--ink); }
"""
HEAD = 40  # above a chart: its title, and the names of its lines


def side_by_side(charts: dict[str, dict[str, Points]], unit: str) -> str:
    """One picture of several charts; ``charts`` maps a title to lines by name, ``unit`` is of the horizontal axis."""
    parts = []
    for place, (title, series) in enumerate(charts.items()):
        drawn = re.search(r"<svg [^>]*>(.*)</svg>", line_chart(title, series, unit))
        if drawn is None:
            raise ValueError(f"{title}: nothing to draw")
        names = "".join(
            f'<tspan fill="{colour}" dx="{8 if number else 0}">{escape(name)}</tspan>'
            for number, (name, colour) in enumerate(zip(series, SERIES, strict=False))
        )
        parts.append(
            f'<g transform="translate({place * WIDTH} {HEAD})"><text x="12" y="-22" class="title">{escape(title)}</text>'
            f'<text x="12" y="-6" class="tick">{names}</text>{drawn[1]}</g>'
        )
    size = f"{len(charts) * WIDTH} {HEIGHT + HEAD}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
