"""The frame of a page."""

from __future__ import annotations

from calumma.cli.inspect.inspect_html import coloured, page


def test_a_page_holds_its_sections_and_escapes_what_is_no_html() -> None:
    made = page("<a>", "b & c", ["<b>one</b>", "two"])
    assert "<h1>&lt;a&gt;</h1><p>b &amp; c</p>" in made
    assert "<section><b>one</b></section><section>two</section>" in made


def test_neighbours_have_other_colours_and_a_note_each() -> None:
    runs = [coloured("x", number, 'of "it"') for number in range(9)]
    assert len(set(runs)) == 8
    assert runs[0] == runs[8]
    assert 'title="of &quot;it&quot;"' in runs[0]
