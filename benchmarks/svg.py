"""Lines through points on logarithmic axes, as an SVG file. It knows nothing of what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 36, 48
COLOURS = ("#1b6ca8", "#c8553d", "#4d7c3a", "#7a4fa3")


def plot(title: str, across: str, up: str, lines: Mapping[str, Points]) -> str:
    """The whole picture. All values have to be above zero."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x_from, x_to = _decades(xs)
    y_from, y_to = _decades(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (math.log10(x) - x_from) / (x_to - x_from) * (WIDTH - LEFT - RIGHT)
        high = (math.log10(y) - y_from) / (y_to - y_from) * (HEIGHT - TOP - BOTTOM)
        return LEFT + right, HEIGHT - BOTTOM - high

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    )
    parts = [
        svg,
        _text(WIDTH / 2, 20, title, "middle"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, across, "middle"),
        f'<g transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{_text(0, 0, up, "middle")}</g>',
    ]
    for power in range(x_from, x_to + 1):
        x, _ = place(10.0**power, 10.0**y_from)
        parts += [_rule(x, TOP, x, HEIGHT - BOTTOM), _text(x, HEIGHT - BOTTOM + 16, _label(power), "middle")]
    for power in range(y_from, y_to + 1):
        _, y = place(10.0**x_from, 10.0**power)
        parts += [_rule(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, _label(power), "end")]
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(_text(LEFT + 10, TOP + 16 + 15 * number, name, "start", colour))
    return "\n".join([*parts, "</svg>\n"])


def slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    """How steep a line is where both axes are logarithmic: the power with which y grows with x."""
    return math.log(other[1] / one[1]) / math.log(other[0] / one[0])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values; two different ones."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _label(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
