"""Curves are thinned, and charts are well-formed SVG."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from calumma.charts import MAX_POINTS, Chart, Curve, EventMark, interval_mark, running_median, stacked_bar


def curve(*values: float) -> Curve:
    return Curve.from_points(enumerate(values, 1))


def parse_svg(chart: Chart) -> ElementTree.Element:
    """Parse the chart's SVG, which must be well-formed."""
    match = re.search(r"<svg.*</svg>", chart.to_html(), re.DOTALL)
    assert match is not None
    return ElementTree.fromstring(match[0])


def test_a_long_curve_has_few_points_and_loses_no_value() -> None:
    many = 100_000
    long = curve(*(float(step % 1000) for step in range(many)))
    assert MAX_POINTS <= len(long.points) <= 2 * MAX_POINTS
    assert sum(point.count for point in long.points) == many
    assert sum(point.total for point in long.points) == sum(step % 1000 for step in range(many))
    assert (min(p.low for p in long.points), max(p.high for p in long.points)) == (0.0, 999.0)
    assert [point.step for point in long.points] == sorted({point.step for point in long.points})
    assert long.last == 999.0


def test_a_chart_has_a_line_for_each_curve_and_names_with_newest_values() -> None:
    chart = Chart("Loss <nats>", {"text": curve(3.0, 2.0, 1.5), "image": curve(5.0, 4.5, 4.25)})
    svg = parse_svg(chart)
    lines = svg.findall("polyline")
    assert len(lines) == 2
    # Text is below image, so further down; both fall, so they move down.
    text, image = ([float(p.split(",")[1]) for p in one.attrib["points"].split()] for one in lines)
    assert all(t > i for t, i in zip(text, image, strict=True))
    assert text == sorted(text)
    shown = chart.to_html()
    assert "Loss &lt;nats&gt;" in shown
    assert "text 1.5" in shown and "image 4.25" in shown
    assert "<script" not in shown and "http" not in shown


def test_a_chart_in_a_file_has_its_title_and_names_inside() -> None:
    root = ElementTree.fromstring(Chart("Loss <nats>", {"a & b": curve(3.0, 2.0), "c": curve(1.0)}).to_svg_file())
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and {"Loss <nats>", "a & b", "c"} <= {*texts}
    assert len([element for element in root if element.tag.endswith("}polyline")]) == 1
    assert {"grid", "mark"} <= {*re.findall(r"\.(\w+){stroke:", "".join(root.itertext()))}  # there is no page's style


def test_marks_are_at_their_steps_with_their_text() -> None:
    chart = Chart("z", {"z": curve(*map(float, range(1, 12)))}, marks=[EventMark(6, "a <spike>")])
    [mark] = [one for one in parse_svg(chart).iter("line") if one.attrib.get("class") == "mark"]
    # Halfway between the axes' ends.
    assert float(mark.attrib["x1"]) == (52 + 460 - 16) / 2
    assert mark.findtext("title") == "a <spike>"
    assert "mark" not in Chart("z", {"z": curve(1.0, 2.0)}, marks=[EventMark(6, "")]).to_svg()


def test_values_over_decades_have_a_logarithmic_axis() -> None:
    svg = parse_svg(Chart("norm", {"norm": curve(*(10.0**power for power in range(5)))}))
    [line] = svg.findall("polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    steps = [one - other for one, other in itertools.pairwise(heights)]
    assert max(steps) - min(steps) < 0.3
    assert {"1", "10", "100", "1000", "10k"} <= {text.text for text in svg.findall("text")}


def test_one_spike_does_not_flatten_the_rest() -> None:
    values = [1.0 + step % 2 for step in range(400)]
    values[200] = 1e9
    svg = parse_svg(Chart("loss", {"loss": curve(*values)}))
    [line] = svg.findall("polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert abs(heights[0] - heights[1]) > 50


def test_many_curves_share_a_color_scale_and_the_ends_are_named() -> None:
    layers = {f"layer {number}": curve(1.0, float(number + 1)) for number in range(24)}
    shown = Chart("attention", layers).to_html()
    assert shown.count("<polyline") == 24
    assert shown.count('class="name"') == 2
    assert "layer 0 " in shown and "layer 23 " in shown


def test_a_chart_of_nothing_says_so_and_of_one_value_shows_it() -> None:
    assert Chart("z", {"z": Curve()}).to_svg() == "<p>no values yet</p>"
    assert len(parse_svg(Chart("z", {"z": curve(2.0)})).findall("circle")) == 1


def test_values_that_are_not_finite_are_left_out() -> None:
    points = [(0, math.nan), (1, 4.0), (2, math.inf), (3, 2.0)]
    assert [point.step for point in Curve.from_points(points).points] == [1, 3]


def test_a_running_median_ignores_a_spike_and_keeps_the_ends() -> None:
    assert running_median([5, 4, 90, 2, 1], window=3) == [5, 5, 4, 2, 1]
    assert running_median([], window=3) == []


def test_a_smooth_chart_has_levels_labels_and_two_lines_per_curve() -> None:
    chart = Chart(
        "Loss",
        {"text": curve(9.0, 5.0, 2.0), "image": curve(8.0, 6.0, 4.0)},
        marks=[EventMark(2, "stage two", "stage <two>")],
        unit="bits",
        levels={"text, unigram": 6.0, "chance": 7.0},
        smooth=True,
    )
    svg = parse_svg(chart)
    assert len(svg.findall("polyline")) == 2 * 2 + 2
    texts = {text.text for text in svg.findall("text")}
    assert {"stage <two>", "text, unigram", "chance"} <= texts
    dashed = [line for line in svg.findall("polyline") if "stroke-dasharray" in line.attrib]
    colors = [line.attrib["stroke"] for line in dashed]
    assert colors == [svg.findall("polyline")[0].attrib["stroke"], "#777777"]
    assert "Loss <small>bits</small>" in chart.to_html()


def test_a_stacked_bar_is_divided_by_durations() -> None:
    bar = stacked_bar({"one": 30.0, "two": 90.0}, "time by step")
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', bar) == ([("0.00", "25.00"), ("25.00", "75.00")])
    assert "two: 1 min 30 s, 75 %" in bar
    assert stacked_bar({}, "time") == stacked_bar({"one": 0.0}, "time") == ""


def test_a_stacked_bar_has_a_limit_inside_or_outside_its_parts() -> None:
    below = stacked_bar({"weights": 30.0}, "memory", "{:.0f} GiB".format, limit=60)
    assert 'width="50.00%"' in below and 'x1="100.00%"' in below and "weights 30 GiB" in below
    assert 'x1="50.00%"' in stacked_bar({"weights": 30.0}, "memory", limit=15)


def test_an_interval_mark_starts_at_zero() -> None:
    mark = interval_mark(5.0, (4.0, 6.0), [10.0])
    assert 'cx="80.0"' in mark and 'x1="155.0" x2="155.0"' in mark
    assert 'x1="65.0" x2="95.0"' in mark
    below = interval_mark(-1.0, (-2.0, -0.5), [0.0])
    assert 'cx="80.0"' in below and 'x1="155.0" x2="155.0"' in below


@pytest.mark.parametrize(("value", "baselines"), [(0.0, []), (math.nan, [1.0])])
def test_a_mark_without_a_scale_is_empty(value: float, baselines: list[float]) -> None:
    assert interval_mark(value, None, baselines) == ""
