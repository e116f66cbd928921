import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from calumma.charts import Chart, Curve, EventMark
from calumma.demo.page_data import (
    CaptionedImage,
    GeneratedImages,
    InterleavedSample,
    MetricRow,
    PageData,
    TokenCell,
    TokenizationExample,
    next_commands,
)
from calumma.demo.report_page import render_page, write_report_page
from calumma.errors import OutputError
from calumma.evaluate.metric import Metric
from tests.browser import problems_of_file

RED = PIL.Image.new("RGB", (16, 16), "red")
BARE = PageData(title="A title", lead="A lead.", command="", machine="")
FULL = PageData(
    title="A title",
    lead="A lead.",
    command="calumma demo",
    machine="two cores",
    seconds={"shards": 5.0},
    warnings=["a warning"],
    generated_images=[GeneratedImages("a red fox", [RED] * 4, "never seen")],
    captions=[CaptionedImage(RED, "a red fox", "a red hat", "a blue fox")],
    interleaved=[InterleavedSample(["a fox", RED], [RED, "two foxes"])],
    tokenization=TokenizationExample("a red fox", RED, [[1, 2], [3, 4]], 8, RED, [TokenCell(5, "text", "fox", 0)]),
    charts=[Chart("Pre-training", {"text": Curve.from_points([(0, 9.0), (5, 2.0)])})],
    sample_strip="<table><tr><td>step 5</td></tr></table>",
    reconstructions=[(RED, RED)],
    metrics=[MetricRow(Metric("codebook_used", 0.9, None, 100, None, "share"))],
    sizes=[("parameters", "3.1 M")],
    next_commands=next_commands("out/demo", "a red fox", "what is this?"),
    attribution=["Emoji, MIT"],
)
LISTS = {field.name for field in fields(PageData)} - {"title", "lead", "command", "machine"}


class Reader(HTMLParser):
    """Collects text, headings and everything that a browser would load."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        self.text.append(data)


def test_every_section_is_on_the_page() -> None:
    found = Reader(render_page(FULL))
    assert found.headings == [
        "Generated images",
        "Captions",
        "Interleaved documents",
        "Tokenization",
        "Learning to draw",
        "Training",
        "Reconstructions",
        "Evaluation",
        "Time",
        "Sizes",
        "Next steps",
        "Data sources",
    ]
    text = " ".join(found.text)
    for part in (
        *("A lead.", "calumma demo", "two cores", "a warning", "never seen", "two foxes"),
        *("Pre-training", "90.0 %", "5.0 s", "3.1 M", "--prompt 'a red fox'", "Emoji, MIT"),
    ):
        assert part in text
    assert sum(tag == "img" for tag, _ in found.tags) == 4 + 1 + 2 + 2 + 2


def test_empty_data_have_no_headings() -> None:
    found = Reader(render_page(BARE))
    assert found.headings == [] and ("nav", {}) not in found.tags


@pytest.mark.parametrize("name", sorted(LISTS - {"warnings"}))
def test_an_empty_section_has_no_heading(name: str) -> None:
    without = replace(FULL, **{name: getattr(BARE, name)})
    assert len(Reader(render_page(without)).headings) == len(Reader(render_page(FULL)).headings) - 1


def test_charts_and_times_without_a_value_have_no_heading() -> None:
    empty = replace(BARE, charts=[Chart("a", {"b": Curve()})], seconds={"nothing": 0.0})
    assert Reader(render_page(empty)).headings == []


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = render_page(FULL)
    found = Reader(html)
    for tag, attributes in found.tags:
        assert tag not in {"script", "iframe", "object", "embed", "video", "audio", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "@font-face" not in style
    assert "default-src 'none'" in html


def test_text_is_escaped() -> None:
    evil = '"><script>alert(1)</script>$style'
    data = PageData(
        title=evil,
        lead=evil,
        command=evil,
        machine=evil,
        seconds={evil: 1.0},
        warnings=[evil],
        generated_images=[GeneratedImages(evil, [RED], evil)],
        captions=[CaptionedImage(RED, evil, evil + " x", evil)],
        interleaved=[InterleavedSample([evil], [evil])],
        tokenization=TokenizationExample(evil, RED, [[1]], 2, RED, [TokenCell(5, "text", evil, 0)]),
        charts=[
            Chart(
                evil,
                {evil: Curve.from_points([(0, 1.0), (4, 2.0)])},
                evil,
                [EventMark(2, evil, evil)],
                evil,
                {evil: 1.5},
            )
        ],
        metrics=[MetricRow(Metric(evil, 0.9, None, 100, None, evil, evil), evil, True)],
        sizes=[(evil, evil)],
        next_commands=[(evil, evil)],
        attribution=[evil],
    )
    html = render_page(data)
    assert "<script" not in html
    assert html.count("$style") > 20
    Reader(html)


def test_words_that_the_reference_does_not_have_are_marked() -> None:
    html = render_page(FULL)
    assert "a red <u>hat</u>" in html and "a <u>blue</u> fox" in html
    right = replace(BARE, captions=[CaptionedImage(RED, "A red  fox", "a red fox")])
    assert 'a red fox <b class="met">✓</b>' in render_page(right)
    assert "<dt>nearest</dt>" not in render_page(right)


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    write_report_page(tmp_path / "a.html", FULL)
    write_report_page(tmp_path / "b.html", FULL)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == render_page(FULL)


def test_a_page_of_two_hundred_images_is_under_three_megabytes() -> None:
    # Smooth shades with some noise: harder to compress than generated images.
    generator = np.random.default_rng(0)
    shades = np.linspace(0, 200, 64)[:, None, None] + generator.normal(0, 4, (64, 64, 3))
    image = PIL.Image.fromarray(shades.clip(0, 255).astype(np.uint8))
    data = replace(BARE, generated_images=[GeneratedImages("p", [image] * 4)] * 50)
    assert len(render_page(data).encode()) < 3_000_000


def test_a_page_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="expected a folder that you may write to"):
        write_report_page(tmp_path / "file" / "report.html", BARE)


def test_the_style_has_light_dark_phone_and_paper() -> None:
    html = render_page(BARE)
    for query in ("prefers-color-scheme: dark", "max-width: 720px", "@media print", "pixelated"):
        assert re.search(re.escape(query), html)


def test_the_page_is_accessible_and_fits_each_width(tmp_path: Path) -> None:
    metric = Metric(
        "code_bits_right_minus_shuffled", -1.01, 0.0, 236, (-1.06, -0.96), "bits per code", "a long note " * 9
    )
    write_report_page(tmp_path / "report.html", replace(FULL, metrics=[MetricRow(metric, "interval below 0", True)]))
    assert problems_of_file(tmp_path / "report.html") == []
