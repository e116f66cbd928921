"""Curves that stay small, and charts of them."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

from calumma.charts import MAX_POINTS, Chart, Curve, EventMark


def curve(*values: float) -> Curve:
    made = Curve()
    for step, value in enumerate(values, 1):
        made.add(step, value)
    return made


def drawn(chart: Chart) -> ElementTree.Element:
    """The chart's SVG, parsed: it is well-formed."""
    found = re.search(r"<svg.*</svg>", chart.to_html(), re.DOTALL)
    assert found is not None
    return ElementTree.fromstring(found[0])


def test_a_curve_of_any_length_has_few_points_and_loses_no_value() -> None:
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
    svg = drawn(chart)
    lines = svg.findall("polyline")
    assert len(lines) == 2
    # Text is below image, so further down; both fall, so their places move down.
    text, image = ([float(p.split(",")[1]) for p in one.attrib["points"].split()] for one in lines)
    assert all(t > i for t, i in zip(text, image, strict=True))
    assert text == sorted(text)
    shown = chart.to_html()
    assert "Loss &lt;nats&gt;" in shown
    assert "text 1.5" in shown and "image 4.25" in shown
    assert "<script" not in shown and "http" not in shown


def test_marks_stand_at_their_steps_with_their_text() -> None:
    chart = Chart("z", {"z": curve(*map(float, range(1, 12)))}, marks=[EventMark(6, "a <spike>")])
    [mark] = [one for one in drawn(chart).iter("line") if one.attrib.get("class") == "mark"]
    # Halfway between the axes' ends.
    assert float(mark.attrib["x1"]) == (52 + 460 - 10) / 2
    assert mark.findtext("title") == "a <spike>"
    assert "mark" not in Chart("z", {"z": curve(1.0, 2.0)}, marks=[EventMark(6, "")]).to_svg()


def test_what_spans_decades_has_a_logarithmic_axis() -> None:
    svg = drawn(Chart("norm", {"norm": curve(*(10.0**power for power in range(5)))}))
    [line] = svg.findall("polyline")
    heights = [float(place.split(",")[1]) for place in line.attrib["points"].split()]
    steps = [one - other for one, other in itertools.pairwise(heights)]
    assert max(steps) - min(steps) < 0.3
    assert {"1", "10", "100", "1000", "10k"} <= {text.text for text in svg.findall("text")}


def test_one_spike_does_not_flatten_the_rest() -> None:
    values = [1.0 + step % 2 for step in range(400)]
    values[200] = 1e9
    svg = drawn(Chart("loss", {"loss": curve(*values)}))
    [line] = svg.findall("polyline")
    heights = [float(place.split(",")[1]) for place in line.attrib["points"].split()]
    assert abs(heights[0] - heights[1]) > 50


def test_many_curves_are_one_family_of_colours_named_at_its_ends() -> None:
    layers = {f"layer {number}": curve(1.0, float(number + 1)) for number in range(24)}
    shown = Chart("attention", layers).to_html()
    assert shown.count("<polyline") == 24
    assert shown.count('class="name"') == 2
    assert "layer 0 " in shown and "layer 23 " in shown


def test_a_chart_of_nothing_says_so_and_of_one_value_shows_it() -> None:
    assert Chart("z", {"z": Curve()}).to_svg() == "<p>no values yet</p>"
    assert len(drawn(Chart("z", {"z": curve(2.0)})).findall("circle")) == 1
