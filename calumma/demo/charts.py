"""Charts as inline SVG: lines over steps, a bar of shares, a mark with its interval.

Colours are classes of `page.css` (`series-0`, `series-1`, ...), so that one drawing serves light,
dark and print. A chart has no elements with an id, and two of the same values are the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from calumma.demo.embed import duration, escaped, number
from calumma.demo.page_data import Curve, MetricRow, Series

WIDTH, HEIGHT = 528, 272
TOP, BOTTOM, LEFT = 22, 34, 44
"""Margins around the plot; the right one is as wide as the labels there."""

NUM_COLOURS = 8
"""Classes `series-0` to `series-7`; further lines take them up again."""

MOST_POINTS = 240
"""Points drawn of a line: more would not be seen at this width."""

LABEL_HEIGHT = 15

Point = tuple[float, float]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most`, a step of 1, 2 or 5 times a power of ten.

    >>> ticks(0, 10), ticks(0, 1400, most=5)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.0, 500.0, 1000.0])
    """
    assert high > low and most > 1
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for size in (1, 2, 5, 10, 20):
        step = size * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [round(place * step, 12) for place in range(first, last + 1)]


def running_median(values: Sequence[float], window: int) -> list[float]:
    """The median of the `window` values around each; fewer, and as many on both sides, at the ends.

    >>> running_median([1, 9, 2, 3, 2], window=3)
    [1, 2, 3, 2, 2]
    """
    smooth = []
    for place in range(len(values)):
        reach = min(window // 2, place, len(values) - 1 - place)
        smooth.append(median(values[place - reach : place + reach + 1]))
    return smooth


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def line_chart(curve: Curve) -> str:
    """A chart of all the curve's series: the running median strong, the raw values faint behind it.

    Returns:
        One `<svg>`; "" if no series has a finite value.
    """
    lines = [(series.name, raw) for series in curve.series if (raw := _finite(series))]
    if not lines:
        return ""
    smooth = {name: _smoothed(raw) for name, raw in lines}
    levels = {name: level for name, level in curve.baseline.items() if math.isfinite(level)}
    plot = _Plot([point for points in smooth.values() for point in points], levels, list(smooth))
    inner = [
        plot.line(thin(raw), f"raw {_colour(place)}") for place, (_, raw) in enumerate(lines)
    ] + [
        plot.line(thin(points), f"line {_colour(place)}")
        for place, points in enumerate(smooth.values())
    ]
    title = f"{curve.title}, {curve.unit}: " + "; ".join(
        f"{name} from {number(_short(points[0][1]))} to {number(_short(points[-1][1]))}"
        for name, points in smooth.items()
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escaped(title)}">'
        + plot.axes()
        + plot.boundary(curve)
        + plot.levels(levels)
        + plot.inside(inner)
        + plot.end_labels({name: points[-1][1] for name, points in smooth.items()})
        + "</svg>"
    )


class _Plot:
    """Where values stand on the paper, and the parts that are drawn there."""

    def __init__(self, points: Sequence[Point], levels: Mapping[str, float], names: list[str]):
        steps = [step for step, _ in points]
        values = [value for _, value in points] + list(levels.values())
        self.names = names
        self.left_step, self.right_step = min(steps), max(max(steps), min(steps) + 1)
        self.low = min(0.0, min(values))
        self.high = max(max(values), self.low + 1e-9) + 0.04 * (max(values) - self.low)
        longest = max(len(name) for name in names)
        self.right = WIDTH - min(150, 16 + 8 * longest)
        self.bottom = HEIGHT - BOTTOM

    def x(self, step: float) -> float:
        share = (step - self.left_step) / (self.right_step - self.left_step)
        return round(LEFT + share * (self.right - LEFT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.bottom - share * (self.bottom - TOP), 1)

    def line(self, points: Sequence[Point], style: str) -> str:
        path = "L".join(f"{self.x(step):g} {self.y(value):g}" for step, value in points)
        dot = "h0" if len(points) == 1 else ""
        return f'<path class="{style}" d="M{path}{dot}"/>'

    def inside(self, parts: Sequence[str]) -> str:
        """The parts, cut off at the edges of the plot."""
        box = f"{LEFT} {TOP} {self.right - LEFT} {self.bottom - TOP}"
        x, y, width, height = box.split()
        return (
            f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">'
            + "".join(parts)
            + "</svg>"
        )

    def axes(self) -> str:
        parts = []
        for value in ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:g}H{self.right}"/>')
            parts.append(_text(LEFT - 8, y + 4, number(value), "tick end"))
        for step in ticks(self.left_step, self.right_step):
            parts.append(_text(self.x(step), self.bottom + 18, number(step), "tick middle"))
        parts.append(_text(self.right + 8, self.bottom + 18, "steps", "tick"))
        parts.append(f'<path class="axis" d="M{LEFT} {self.y(0):g}H{self.right}"/>')
        return "".join(parts)

    def boundary(self, curve: Curve) -> str:
        if curve.boundary is None or not self.left_step < curve.boundary < self.right_step:
            return ""
        x = self.x(curve.boundary)
        return f'<path class="boundary" d="M{x:g} {TOP - 6}V{self.bottom}"/>' + _text(
            x, TOP - 10, curve.boundary_label, "tick middle"
        )

    def levels(self, levels: Mapping[str, float]) -> str:
        """Dashed lines, each with its name above its right end, where curves have gone down."""
        spots = _apart({name: self.y(level) - 5 for name, level in levels.items()})
        parts = []
        for name, level in levels.items():
            colour = _colour(self.names.index(name)) if name in self.names else "plain"
            label = f"{name}, by frequency alone" if name in self.names else name
            parts.append(
                f'<path class="level {colour}" d="M{LEFT} {self.y(level):g}H{self.right}"/>'
            )
            parts.append(_text(self.right - 4, spots[name], label, f"name end {colour}"))
        return "".join(parts)

    def end_labels(self, ends: Mapping[str, float]) -> str:
        """The name of each line at its end."""
        spots = _apart({name: self.y(value) + 4 for name, value in ends.items()})
        return "".join(
            _text(self.right + 8, spots[name], name, f"name strong {_colour(place)}")
            for place, name in enumerate(ends)
        )


def _finite(series: Series) -> list[Point]:
    return [(step, value) for step, value in series.points if math.isfinite(value)]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """The running median over about a thirtieth of the line, at least three values."""
    window = max(3, len(points) // 30) | 1
    values = running_median([value for _, value in points], window)
    return [(step, value) for (step, _), value in zip(points, values, strict=True)]


def _apart(places: Mapping[str, float]) -> dict[str, float]:
    """The same places, moved down where two labels would stand on each other."""
    moved: dict[str, float] = {}
    last = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = max(place, last + LABEL_HEIGHT)
        moved[name] = round(last, 1)
    return moved


def _colour(place: int) -> str:
    return f"series-{place % NUM_COLOURS}"


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{escaped(text)}</text>'


def shares_bar(seconds: Mapping[str, float]) -> str:
    """One bar cut into the shares of a whole, with a list of names and times below it.

    Returns:
        An `<svg>` and a list; "" if the whole is nothing.
    """
    whole = sum(seconds.values())
    if whole <= 0:
        return ""
    bars, names, start = [], [], 0.0
    for place, (name, part) in enumerate(seconds.items()):
        share = 100 * part / whole
        label = f"{escaped(name)}: {duration(part)}, {share:.0f} %"
        bars.append(
            f'<rect class="{_colour(place)}" x="{start:.2f}%" width="{share:.2f}%" height="28">'
            f"<title>{label}</title></rect>"
        )
        names.append(
            f'<li><i class="swatch {_colour(place)}"></i>{escaped(name)} '
            f"<b>{duration(part)}</b></li>"
        )
        start += share
    return (
        f'<svg class="shares" width="100%" height="28" role="img" aria-label="shares of the time">'
        f'{"".join(bars)}</svg><ul class="legend">{"".join(names)}</ul>'
    )


def interval_mark(row: MetricRow, width: int = 132) -> str:
    """A figure as a dot on a line, its interval as a bar, its baseline as a tick."""
    ends = [row.value, *(row.interval or ()), 0.0]
    if row.baseline is not None:
        ends.append(row.baseline)
    low, high = min(ends), max(ends)
    if not all(map(math.isfinite, ends)) or high == low:
        return ""

    def x(value: float) -> str:
        return f"{6 + (value - low) / (high - low) * (width - 12):.1f}"

    parts = [f'<path class="grid" d="M6 11H{width - 6}"/>']
    if row.interval:
        parts.append(f'<path class="whisker" d="M{x(row.interval[0])} 11H{x(row.interval[1])}"/>')
    if row.baseline is not None:
        parts.append(f'<path class="versus" d="M{x(row.baseline)} 3V19"/>')
    parts.append(f'<circle class="dot" cx="{x(row.value)}" cy="11" r="4.5"/>')
    return (
        f'<svg class="mark" width="{width}" height="22" viewBox="0 0 {width} 22" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )
