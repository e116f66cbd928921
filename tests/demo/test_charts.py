import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calumma.demo.charts import (
    HEIGHT,
    MOST_POINTS,
    WIDTH,
    interval_mark,
    line_chart,
    running_median,
    shares_bar,
    thin,
    ticks,
)
from calumma.demo.page_data import Curve, MetricRow, Series

STRAIGHT = Curve("a", "bits", [Series("text", [(0, 10.0), (50, 5.0), (100, 0.0)])])


def paths(chart: str, style: str) -> list[str]:
    return re.findall(rf'<path class="{style}[^"]*" d="([^"]+)"', chart)


def labels(chart: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(chart).iter("text")]


def test_ticks_by_hand() -> None:
    assert ticks(0, 8.6) == [0, 2, 4, 6, 8]
    assert ticks(0, 0.52) == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert ticks(-0.5, 0.5) == [-0.4, -0.2, 0, 0.2, 0.4]
    assert ticks(0, 1399) == [0, 500, 1000]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 12))
def test_ticks_are_few_and_inside(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    slack = span * 1e-3
    assert 0 < len(found) <= most
    assert low - slack <= found[0] and found[-1] <= low + span + slack


def test_a_running_median_passes_over_a_spike_and_keeps_the_ends() -> None:
    assert running_median([5, 4, 90, 2, 1], window=3) == [5, 5, 4, 2, 1]
    assert running_median([], window=3) == []


def test_thinning_keeps_both_ends_and_short_lines_whole() -> None:
    points = [(float(step), 0.0) for step in range(1000)]
    few = thin(points, most=7)
    assert (len(few), few[0], few[-1]) == (7, points[0], points[-1])
    assert thin(points[:7], most=7) == points[:7]


def test_a_straight_line_is_drawn_from_corner_to_corner() -> None:
    # The plot is 44 from the left, 22 from the top, 34 from the bottom; "text" takes 48 on the
    # right; the highest value, 10, stands a little below the top of a plot that reaches 10.4.
    assert paths(line_chart(STRAIGHT), "line") == ["M44 30.3L262 134.2L480 238"]


def test_a_chart_says_its_lines_its_levels_and_its_stages() -> None:
    curve = Curve(
        "Pre-training",
        "bits",
        [Series("text", [(0, 9), (10, 2)]), Series("codes", [(0, 8), (10, 4)])],
        boundary=8,
        baseline={"text": 6.0, "chance": 7.0},
    )
    chart = line_chart(curve)
    shown = labels(chart)
    assert {"text", "codes", "stage two", "text, by frequency alone", "chance"} <= set(shown)
    assert len(paths(chart, "level series-0")) == len(paths(chart, "level plain")) == 1
    assert paths(chart, "boundary") == ["M386.4 16V238"]


def test_a_boundary_outside_the_steps_is_not_drawn() -> None:
    outside = Curve("a", "b", STRAIGHT.series, boundary=100, boundary_label="never")
    assert "never" not in line_chart(outside)


def test_labels_do_not_stand_on_each_other() -> None:
    series = [Series(name, [(0, 5.0), (9, 3.0)]) for name in ("one", "two", "three")]
    chart = ElementTree.fromstring(line_chart(Curve("a", "b", series)))
    places = sorted(
        float(text.attrib["y"]) for text in chart.iter("text") if "name" in _style(text)
    )
    assert all(below - above >= 15 for above, below in pairwise(places))


def _style(element: ElementTree.Element) -> str:
    return element.attrib["class"]


def test_a_long_line_is_drawn_with_few_points() -> None:
    noisy = Series("loss", [(step, 5 + math.sin(step)) for step in range(5000)])
    for drawn in paths(line_chart(Curve("a", "b", [noisy])), "(?:line|raw)"):
        assert drawn.count("L") == MOST_POINTS - 1


def test_values_that_are_not_finite_are_left_out() -> None:
    broken = Series("loss", [(0, math.nan), (1, 4.0), (2, math.inf), (3, 2.0)])
    assert "nan" not in line_chart(Curve("a", "b", [broken]))
    assert line_chart(Curve("a", "b", [Series("loss", [(0, math.nan)])])) == ""
    assert line_chart(Curve("a", "b", [])) == ""


@pytest.mark.parametrize("points", [[(3, 0.0)], [(0, 0.0), (1, 0.0)], [(0, -2.0), (5, 7.0)]])
def test_odd_lines_are_charts_too(points: list[tuple[int, float]]) -> None:
    chart = ElementTree.fromstring(line_chart(Curve("a", "b", [Series("loss", points)])))
    assert chart.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}"


def test_names_in_a_chart_are_escaped() -> None:
    chart = line_chart(Curve("<i>", '"', [Series("<b>&", [(0, 1.0), (1, 2.0)])]))
    assert "<b>" not in chart and "<b>&" in labels(chart)


def test_the_bar_of_shares_is_whole() -> None:
    bar = shares_bar({"one": 30.0, "two": 90.0})
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', bar) == (
        [("0.00", "25.00"), ("25.00", "75.00")]
    )
    assert "two: 1 min 30 s, 75 %" in bar
    assert shares_bar({}) == shares_bar({"one": 0.0}) == ""


def figure(value: float, baseline: float | None, interval: tuple[float, float] | None) -> MetricRow:
    return MetricRow("f", value, baseline, 9, interval, "bits")


def test_a_mark_runs_from_zero_to_the_largest_end() -> None:
    mark = interval_mark(figure(5.0, 10.0, (4.0, 6.0)))
    assert 'cx="66.0"' in mark and "M126.0 3V19" in mark and "M54.0 11H78.0" in mark
    below = interval_mark(figure(-1.0, 0.0, (-2.0, -0.5)))
    assert 'cx="66.0"' in below and "M126.0 3V19" in below


def test_a_mark_without_a_scale_is_not_drawn() -> None:
    assert interval_mark(figure(0.0, None, None)) == ""
    assert interval_mark(figure(math.nan, 1.0, None)) == ""
