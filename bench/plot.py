"""Draw ratios and their goals, as SVG: a bar for each ratio, a mark where its goal is.

Pure: figures in, text out. The scale is logarithmic, so that twice and half are as far from 1.
"""

import math
from html import escape

from goals import Figure

WIDTH, LABEL_WIDTH, ROW_HEIGHT, MARGIN = 960, 420, 18, 24
LOW, HIGH = 1 / 16, 64.0
COLORS = {True: "#2a7d4f", False: "#b3392f", None: "#7a7f87"}


def draw(figures: list[Figure], title: str) -> str:
    """Draw all figures whose key ends in `ratio`. Result: the text of an SVG file."""
    ratios = [it for it in figures if it.key.endswith("ratio")]
    height = MARGIN * 3 + ROW_HEIGHT * len(ratios)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(MARGIN, MARGIN, title),
    ]
    for power in range(round(math.log2(LOW)), round(math.log2(HIGH)) + 1):
        x = _x(2.0**power)
        parts.append(_line(x, (MARGIN * 2, height - MARGIN), "#dddddd"))
        parts.append(_text(x, height - 8, f"{2.0**power:g}", "middle"))
    for number, figure in enumerate(ratios):
        parts += _bar(figure, MARGIN * 2 + ROW_HEIGHT * number)
    return "\n".join([*parts, "</svg>", ""])


def _bar(figure: Figure, top: float) -> list[str]:
    goal, value = figure.goal(), figure.median
    start, end = sorted((_x(1.0), _x(value)))
    label = f"{figure.key} {figure.unit}"
    parts = [
        _text(LABEL_WIDTH - 8, top + 13, label, "end"),
        _rectangle(start, top + 3, max(1.0, end - start), COLORS[figure.met()]),
        # Not beside the bar, where the mark of the goal may be.
        _text(WIDTH - 8, top + 13, f"{value:.3g}", "end"),
    ]
    if goal is not None:
        parts.append(_line(_x(goal.limit), (top + 1, top + ROW_HEIGHT - 1), "black"))
    return parts


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return LABEL_WIDTH + share * (WIDTH - LABEL_WIDTH - 3 * MARGIN)


def _rectangle(x: float, y: float, width: float, color: str) -> str:
    height = ROW_HEIGHT - 6
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{color}"/>'


def _line(x: float, y: tuple[float, float], color: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y[0]}" y2="{y[1]}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
