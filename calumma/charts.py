"""Charts as inline SVG: lines over the steps of a run, a stacked bar, an interval mark.

Curves are thinned as they grow. A chart is one HTML fragment that loads nothing and needs no
script; a page that shows charts has CHART_STYLE of calumma/html_report.py in its style sheet.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from calumma.text_format import format_duration

MAX_POINTS = 250
"""A curve keeps at most twice as many points; then neighbors are merged."""

_WIDTH, _HEIGHT = 460.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 14.0, 24.0
_COLORS = ("#2f6fc4", "#d1562b", "#2c8f5a", "#8a56b8", "#b8860b", "#c2407c", "#4a7d8c", "#777777")

_MAX_NAMED = len(_COLORS)
"""More curves than this share one color scale, and only the first and last are named."""


@dataclass
class CurvePoint:
    """The values of neighboring steps, merged."""

    step: int
    """The last of the steps."""

    count: int
    total: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The mean value."""
        return self.total / self.count

    def merge(self, other: "CurvePoint") -> None:
        """Add the values of a later point."""
        self.step, self.count = other.step, self.count + other.count
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass
class Curve:
    """Values at increasing steps, in at most `2 * MAX_POINTS` points.

    >>> curve = Curve.from_points((step, float(step % 2)) for step in range(1, 1001))
    >>> len(curve.points), curve.points[0].count, curve.points[0].mean
    (500, 2, 0.5)
    """

    points: list[CurvePoint] = field(default_factory=list)
    width: int = 1
    """Values per point."""

    last: float = math.nan
    """The newest value."""

    @classmethod
    def from_points(cls, points: Iterable[tuple[int, float]]) -> "Curve":
        """Build a curve of (step, value); values that are not finite are left out."""
        curve = cls()
        for step, value in points:
            if math.isfinite(value):
                curve.add(step, value)
        return curve

    def add(self, step: int, value: float) -> None:
        """Add the finite value of a later step."""
        self.last = value
        new = CurvePoint(step, 1, value, value, value)
        if self.points and self.points[-1].count < self.width:
            self.points[-1].merge(new)
            return
        if len(self.points) == 2 * MAX_POINTS:
            for even, odd in zip(self.points[::2], self.points[1::2], strict=True):
                even.merge(odd)
            self.points = self.points[::2]
            self.width *= 2
        self.points.append(new)

    def smoothed(self) -> list[tuple[int, float]]:
        """Return the running median over about a thirtieth of the points, at least three."""
        values = running_median([point.mean for point in self.points], max(3, len(self.points) // 30) | 1)
        return [(point.step, value) for point, value in zip(self.points, values, strict=True)]


def running_median(values: Sequence[float], window: int) -> list[float]:
    """Return the median of the `window` values around each; at the ends, of fewer.

    >>> running_median([1, 9, 2, 3, 2], window=3)
    [1, 2, 3, 2, 2]
    """
    medians = []
    for index in range(len(values)):
        reach = min(window // 2, index, len(values) - 1 - index)
        medians.append(median(values[index - reach : index + reach + 1]))
    return medians


@dataclass(frozen=True)
class EventMark:
    """A vertical line at a step."""

    step: int
    text: str
    """Shown as a tooltip."""

    label: str = ""
    """Shown above the line."""


@dataclass(frozen=True)
class Chart:
    """Curves over the same steps."""

    title: str
    curves: Mapping[str, Curve]
    note: str = ""
    marks: Sequence[EventMark] = ()
    unit: str = ""

    levels: Mapping[str, float] = field(default_factory=dict)
    """Dashed horizontal lines by name; one whose name begins with a curve's has its color."""

    smooth: bool = False
    """Whether to draw the running median, over the faint values."""

    def to_html(self) -> str:
        """Return an HTML figure."""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        unit = f" <small>{html.escape(self.unit)}</small>" if self.unit else ""
        title = html.escape(self.title) + unit
        caption = f"<figcaption>{title}</figcaption>"
        return f'<figure class="chart">{caption}{note}{self.to_svg()}</figure>'

    def to_svg(self) -> str:
        """Return axes, curves, marks and a legend."""
        curves = {name: curve for name, curve in self.curves.items() if curve.points}
        if not curves:
            return "<p>no values yet</p>"
        points = [point for curve in curves.values() for point in curve.points]
        axes = _Axes.around(points, self.levels.values())
        colors = dict(zip(curves, _colors(len(curves)), strict=True))
        parts = [axes.to_svg()]
        parts += [_mark(mark, axes) for mark in self.marks if axes.first <= mark.step <= axes.last]
        band = len(curves) <= 3
        for name, curve in curves.items():
            parts.append(_line(curve, axes, colors[name], band=band, smooth=self.smooth))
        for name, value in self.levels.items():
            color = next((colors[curve] for curve in colors if name.startswith(curve)), "#777777")
            parts.append(_level(name, value, axes, color))
        box = f"0 0 {_WIDTH:g} {_HEIGHT:g}"
        label = html.escape(self.title)
        svg = f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        return svg + _legend(curves, colors)

    def to_svg_file(self) -> str:
        """Return the content of an SVG file, with the title and the names of the curves."""
        colors = _colors(len(self.curves))
        heading = [_text(_LEFT, _TOP, self.title, "start")]
        for number, (name, color) in enumerate(zip(self.curves, colors, strict=True), start=1):
            y = _HEIGHT + 15 * number
            heading.append(f'<rect x="{_LEFT:g}" y="{y - 6:g}" width="14" height="4" fill="{color}"/>')
            heading.append(_text(_LEFT + 20, y, name, "start"))
        drawing = self.to_svg().partition(">")[2].partition("</svg>")[0]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT + 15 * len(colors) + 10:g}" '
            'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
            f"<style>.grid{{stroke:#dddddd}}.mark{{stroke:#cc2222}}</style>{drawing}{''.join(heading)}</svg>\n"
        )


@dataclass(frozen=True)
class _Axes:
    first: int
    last: int
    low: float
    high: float
    is_log: bool

    @classmethod
    def around(cls, points: Sequence[CurvePoint], levels: Iterable[float]) -> "_Axes":
        """Return axes around nearly all points: extreme spikes may be clipped."""
        steps = [point.step for point in points]
        values = sorted([*(point.mean for point in points), *levels])
        tail = len(values) // 200
        low, high = values[tail], values[-1 - tail]
        if values[-1] - low <= 4 * (high - low):
            high = values[-1]
        if high - values[0] <= 4 * (high - low):
            low = values[0]
        is_log = low > 0 and high > 30 * low
        if not is_log:
            margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
            low, high = (0.0 if low >= 0 and low < high / 4 else low - margin), high + margin
        return cls(min(steps), max(max(steps), min(steps) + 1), low, high, is_log)

    def x(self, step: float) -> float:
        fraction = (step - self.first) / (self.last - self.first)
        return _LEFT + fraction * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        if self.is_log:
            fraction = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            fraction = (value - self.low) / (self.high - self.low)
        fraction = min(1.02, max(-0.02, fraction))
        return _HEIGHT - _BOTTOM - fraction * (_HEIGHT - _TOP - _BOTTOM)

    def polyline(self, points: Iterable[tuple[int, float]], color: str, style: str) -> str:
        coordinates = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)
        return f'<polyline points="{coordinates}" fill="none" stroke="{color}" {style}/>'

    def to_svg(self) -> str:
        """Return grid lines and tick labels."""
        parts = []
        for value in _ticks(self.low, self.high, is_log=self.is_log):
            y = self.y(value)
            line = f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}"'
            parts.append(f'{line} y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(_LEFT - 5, y + 4, _tick_label(value), "end"))
        for step in _ticks(self.first, self.last, is_log=False):
            if step == int(step):
                parts.append(_text(self.x(step), _HEIGHT - 8, _tick_label(step), "middle"))
        return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    """Return about four round numbers between two.

    >>> _ticks(0.0, 9.0, is_log=False), _ticks(0.5, 2000.0, is_log=True)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [1.0, 10.0, 100.0, 1000.0])
    """
    if is_log:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        every = 1 + (len(powers) - 1) // 6
        ticks = [10.0**power for power in powers][::every]
        return ticks if len(ticks) > 1 else [low, (low * high) ** 0.5, high]
    rough = (high - low) / 4
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = min((power * by for by in (1, 2, 5, 10)), key=lambda one: abs(one - rough))
    multiples = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(number * step, 12) for number in multiples]


def _tick_label(value: float) -> str:
    """Format a number with few characters.

    >>> [_tick_label(value) for value in (0.0, 1200.0, 25000.0, 3e6, 0.00015, 2.5)]
    ['0', '1200', '25k', '3M', '1.5e-4', '2.5']
    """
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 10 * unit or (size >= unit and unit > 1e3):
            return f"{value / unit:.3g}{letter}"
    if 0 < size < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"


def _colors(count: int) -> list[str]:
    """Return one color per curve."""
    if count <= _MAX_NAMED:
        return list(_COLORS[:count])
    return [f"hsl({220 - 200 * i / (count - 1):.0f} 60% 50%)" for i in range(count)]


def _line(curve: Curve, axes: _Axes, color: str, *, band: bool, smooth: bool) -> str:
    """Draw the means: in a band from low to high, or faint under their running median."""
    points = curve.points
    if len(points) == 1:
        x, y = axes.x(points[0].step), axes.y(points[0].mean)
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{color}"/>'
    means = [(point.step, point.mean) for point in points]
    if smooth:
        faint = axes.polyline(means, color, 'stroke-width="1" opacity=".28"')
        return faint + axes.polyline(curve.smoothed(), color, 'stroke-width="2.2"')
    line = axes.polyline(means, color, 'stroke-width="1.3"')
    if not band or curve.width == 1:
        return line
    upper = [f"{axes.x(point.step):.1f},{axes.y(point.high):.1f}" for point in points]
    lower = [f"{axes.x(point.step):.1f},{axes.y(point.low):.1f}" for point in points]
    edge = " ".join([*upper, *reversed(lower)])
    return f'<polygon points="{edge}" fill="{color}" opacity=".15"/>{line}'


def _level(name: str, value: float, axes: _Axes, color: str) -> str:
    right = _WIDTH - _RIGHT
    line = axes.polyline([(axes.first, value), (axes.last, value)], color, 'stroke-dasharray="6 5"')
    return line + _text(right - 4, axes.y(value) - 4, name, "end")


def _mark(mark: EventMark, axes: _Axes) -> str:
    x = axes.x(mark.step)
    label = _text(x, _TOP - 4, mark.label, "middle") if mark.label else ""
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{_HEIGHT - _BOTTOM:g}">'
        f"<title>{html.escape(mark.text)}</title></line>{label}"
    )


def _legend(curves: Mapping[str, Curve], colors: Mapping[str, str]) -> str:
    """Return each curve's name and newest value in its color."""
    names = list(curves)
    if len(names) > _MAX_NAMED:
        names = [names[0], names[-1]]
    return " ".join(
        f'<span class="name"><b style="color:{colors[name]}">&#9644;</b> {html.escape(name)} '
        f"{_tick_label(curves[name].last)}</span>"
        for name in names
    )


def stacked_bar(
    parts: Mapping[str, float],
    label: str,
    format_value: Callable[[float], str] = format_duration,
    limit: float | None = None,
) -> str:
    """Return one bar divided by amounts, with a legend; "" if they sum to zero.

    Args:
        parts: name -> amount, 0 or more.
        label: alternative text of the bar.
        format_value: format of an amount.
        limit: amount at which a line is drawn; the bar is as long as the larger of sum and limit.
    """
    total = sum(parts.values())
    if total <= 0:
        return ""
    length = max(total, limit or 0)
    bars, names, start = [], [], 0.0
    for index, (name, part) in enumerate(parts.items()):
        percent, color = 100 * part / length, _COLORS[index % len(_COLORS)]
        shown, value = html.escape(name), format_value(part)
        title = f"<title>{shown}: {value}, {100 * part / total:.0f} %</title>"
        bars.append(f'<rect x="{start:.2f}%" width="{percent:.2f}%" height="28" fill="{color}">{title}</rect>')
        names.append(f'<span class="name"><b style="color:{color}">&#9644;</b> {shown} {value}</span>')
        start += percent
    if limit is not None:
        x = f"{100 * limit / length:.2f}%"
        bars.append(f'<line class="limit" x1="{x}" x2="{x}" y1="0" y2="28"/>')
    head = f'<svg class="bar" width="100%" height="28" role="img" aria-label="{html.escape(label)}">'
    return f'{head}{"".join(bars)}</svg><p class="legend">{" ".join(names)}</p>'


_MARK_WIDTH = 160


def interval_mark(
    value: float,
    interval: tuple[float, float] | None,
    baselines: Iterable[float],
    axis: tuple[float, float] | None = None,
) -> str:
    """Draw a value as a dot on a line, its interval as a bar and its baselines as ticks.

    Args:
        value: the value.
        interval: its 95 % interval, or None.
        baselines: values of the baselines.
        axis: ends of the line; by default it spans everything and zero.

    Returns:
        An SVG; "" if something is not finite, or everything is zero.
    """
    ticks = list(baselines)
    values = [value, *(interval or ()), *ticks]
    low, high = axis or (min(*values, 0.0), max(*values, 0.0))
    if not all(map(math.isfinite, values)) or high == low:
        return ""

    def x(at: float) -> str:
        return f"{5 + (at - low) / (high - low) * (_MARK_WIDTH - 10):.1f}"

    parts = [f'<line class="grid" x1="{x(low)}" x2="{x(high)}" y1="10" y2="10"/>']
    if interval:
        parts.append(f'<line class="interval" x1="{x(interval[0])}" x2="{x(interval[1])}" y1="10" y2="10"/>')
    for tick in ticks:
        parts.append(f'<line class="baseline" x1="{x(tick)}" x2="{x(tick)}" y1="3" y2="17"/>')
    parts.append(f'<circle class="value" cx="{x(value)}" cy="10" r="4"/>')
    return f'<svg width="{_MARK_WIDTH}" height="20" aria-hidden="true">{"".join(parts)}</svg>'
