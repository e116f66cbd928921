"""Curves over the steps of a run, thinned as they grow, and charts of them as SVG.

A chart is one piece of HTML that loads nothing and needs no script.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_POINTS = 250
"""A curve has at most twice as many; then neighbours share one."""

_WIDTH, _HEIGHT = 460.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 10.0, 10.0, 24.0
_COLOURS = ("#2f6fc4", "#d1562b", "#2c8f5a", "#8a56b8", "#b8860b", "#c2407c", "#4a7d8c", "#777777")

_NAMED = len(_COLOURS)
"""More curves than this are coloured as one family, and only the first and last are named."""


@dataclass
class CurvePoint:
    """What neighbouring steps had."""

    step: int
    """The last of them."""

    count: int
    total: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Of their values."""
        return self.total / self.count

    def join(self, other: CurvePoint) -> None:
        """Take in a later point."""
        self.step, self.count = other.step, self.count + other.count
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass
class Curve:
    """Values at rising steps, in never more than `2 * MOST_POINTS` points.

    >>> curve = Curve()
    >>> for step in range(1, 1001):
    ...     curve.add(step, float(step % 2))
    >>> len(curve.points), curve.points[0].many, curve.points[0].mean
    (500, 2, 0.5)
    """

    points: list[CurvePoint] = field(default_factory=list)
    width: int = 1
    """Values that share a point."""

    last: float = math.nan
    """The newest value."""

    def add(self, step: int, value: float) -> None:
        """Add the value of a later step; it is finite."""
        self.last = value
        new = CurvePoint(step, 1, value, value, value)
        if self.points and self.points[-1].count < self.width:
            self.points[-1].join(new)
            return
        if len(self.points) == 2 * MAX_POINTS:
            for even, odd in zip(self.points[::2], self.points[1::2], strict=True):
                even.join(odd)
            self.points = self.points[::2]
            self.width *= 2
        self.points.append(new)


@dataclass(frozen=True)
class EventMark:
    """A step at which something was out of the ordinary."""

    step: int
    text: str


@dataclass(frozen=True)
class Chart:
    """Some curves over the same steps."""

    title: str
    curves: Mapping[str, Curve]
    note: str = ""
    marks: Sequence[EventMark] = ()

    def to_html(self) -> str:
        """A figure that loads nothing."""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        title = html.escape(self.title)
        return f"<figure><figcaption>{title}</figcaption>{note}{self.to_svg()}</figure>"

    def to_svg(self) -> str:
        """Axes, curves, marks and names."""
        shown = {name: curve for name, curve in self.curves.items() if curve.points}
        if not shown:
            return "<p>no values yet</p>"
        points = [point for curve in shown.values() for point in curve.points]
        axes = _Axes.around(points)
        colours = _colours(len(shown))
        parts = [axes.to_svg()]
        parts += [_mark(mark, axes) for mark in self.marks if axes.first <= mark.step <= axes.last]
        for (_, curve), colour in zip(shown.items(), colours, strict=True):
            parts.append(_line(curve, axes, colour, alone=len(shown) <= 3))
        box = f"0 0 {_WIDTH:g} {_HEIGHT:g}"
        label = html.escape(self.title, quote=True)
        drawn = f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        return drawn + _names(shown, colours)


@dataclass(frozen=True)
class _Axes:
    first: int
    last: int
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def around(cls, points: Sequence[CurvePoint]) -> _Axes:
        """Axes that hold nearly all points: a spike a hundred times as high may leave them."""
        steps = [point.step for point in points]
        values = sorted(point.mean for point in points)
        tail = len(values) // 200
        low, high = values[tail], values[-1 - tail]
        if values[-1] - low <= 4 * (high - low):
            high = values[-1]
        if high - values[0] <= 4 * (high - low):
            low = values[0]
        logarithmic = low > 0 and high > 30 * low
        if not logarithmic:
            room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
            low, high = (0.0 if low >= 0 and low < high / 4 else low - room), high + room
        return cls(min(steps), max(max(steps), min(steps) + 1), low, high, logarithmic)

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        share = min(1.02, max(-0.02, share))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def to_svg(self) -> str:
        """Lines and numbers."""
        parts = []
        for value in _ticks(self.low, self.high, logarithmic=self.logarithmic):
            y = self.y(value)
            line = f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}"'
            parts.append(f'{line} y1="{y:.1f}" y2="{y:.1f}"/>')
            text = f'<text x="{_LEFT - 5:g}" y="{y + 4:.1f}" text-anchor="end">'
            parts.append(f"{text}{_number(value)}</text>")
        for step in _ticks(self.first, self.last, logarithmic=False):
            if step == int(step):
                x = self.x(step)
                text = f'<text x="{x:.1f}" y="{_HEIGHT - 8:g}" text-anchor="middle">'
                parts.append(f"{text}{_number(step)}</text>")
        return "".join(parts)


def _ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Some four round numbers between two.

    >>> _ticks(0.0, 9.0, logarithmic=False), _ticks(0.5, 2000.0, logarithmic=True)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [1.0, 10.0, 100.0, 1000.0])
    """
    if logarithmic:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        every = 1 + (len(powers) - 1) // 6
        ticks = [10.0**power for power in powers][::every]
        return ticks if len(ticks) > 1 else [low, (low * high) ** 0.5, high]
    rough = (high - low) / 4
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = min((power * by for by in (1, 2, 5, 10)), key=lambda one: abs(one - rough))
    many = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(number * step, 12) for number in many]


def _number(value: float) -> str:
    """A number in few letters.

    >>> [_number(value) for value in (0.0, 1200.0, 25000.0, 3e6, 0.00015, 2.5)]
    ['0', '1200', '25k', '3M', '1.5e-4', '2.5']
    """
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 10 * unit or (size >= unit and unit > 1e3):
            return f"{value / unit:.3g}{letter}"
    if 0 < size < 1e-3:
        digits, exponent = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else ("", "")
        return f"{digits}e{int(exponent)}" if digits else f"{value * 1e4:.2g}e-4"
    return f"{value:.4g}"


def _colours(many: int) -> list[str]:
    """One for each curve."""
    if many <= _NAMED:
        return list(_COLOURS[:many])
    return [f"hsl({220 - 200 * i / (many - 1):.0f} 60% 50%)" for i in range(many)]


def _line(curve: Curve, axes: _Axes, colour: str, *, alone: bool) -> str:
    """The means, and behind them what lies between the lowest and highest value."""
    points = curve.points
    places = [f"{axes.x(point.step):.1f},{axes.y(point.mean):.1f}" for point in points]
    parts = []
    if alone and curve.width > 1:
        over = [f"{axes.x(point.step):.1f},{axes.y(point.high):.1f}" for point in points]
        under = [f"{axes.x(point.step):.1f},{axes.y(point.low):.1f}" for point in points]
        edge = " ".join([*over, *reversed(under)])
        parts.append(f'<polygon points="{edge}" fill="{colour}" opacity=".15"/>')
    if len(places) == 1:
        x, y = places[0].split(",")
        return f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>'
    parts.append(
        f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
    )
    return "".join(parts)


def _mark(mark: EventMark, axes: _Axes) -> str:
    x = axes.x(mark.step)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{_HEIGHT - _BOTTOM:g}">'
        f"<title>{html.escape(mark.text)}</title></line>"
    )


def _names(curves: Mapping[str, Curve], colours: Sequence[str]) -> str:
    """Each curve's name and newest value, in its colour."""
    named = list(zip(curves.items(), colours, strict=True))
    if len(named) > _NAMED:
        named = [named[0], named[-1]]
    return " ".join(
        f'<span class="name"><b style="color:{colour}">&#9644;</b> {html.escape(name)} '
        f"{_number(curve.last)}</span>"
        for (name, curve), colour in named
    )


CHART_STYLE = """\
figure { margin: 0; min-width: 0 }
figcaption { font-weight: 600 }
figure p { margin: 0; color: #666 }
figure svg { width: 100%; height: auto; display: block; font: 10.5px system-ui, sans-serif }
figure text { fill: #666 }
.grid { stroke: #8884; stroke-width: .6 }
.mark { stroke: #c22; stroke-width: 1; stroke-dasharray: 3 3 }
.name { font-size: .8rem; margin-right: .6rem; display: inline-block }
@media (prefers-color-scheme: dark) { figure text, figure p { fill: #aaa; color: #aaa } }
"""
"""What a page with charts has in its style sheet."""
