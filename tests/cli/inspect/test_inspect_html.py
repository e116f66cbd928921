"""HTML of the pages of `calumma inspect`."""

from __future__ import annotations

from calumma.cli.inspect.inspect_html import highlighted, sections_page


def test_a_page_has_its_sections_and_escapes_title_and_note() -> None:
    page = sections_page("<a>", "b & c", ["<b>one</b>", "two"])
    assert "<h1>&lt;a&gt;</h1><p>b &amp; c</p>" in page
    assert "<section><b>one</b></section><section>two</section>" in page


def test_neighbors_have_different_colors_and_a_tooltip_each() -> None:
    spans = [highlighted("x", number, 'of "it"') for number in range(9)]
    assert len(set(spans)) == 8
    assert spans[0] == spans[8]
    assert 'title="of &quot;it&quot;"' in spans[0]
