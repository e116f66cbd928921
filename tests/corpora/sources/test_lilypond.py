"""Music: what is engraved, and the code of it."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.lilypond import extract_snippet, read_lilypond
from tests.corpora.packages import text, write_image

FOLDER = "usr/share/doc/lilypond/html/Documentation/b1"
STARS = "% " + "*" * 64
LY = (
    "%% Generated\n\\paper {{}}\n% ly snippet:\n{stars}\n\\sourcefileline 3\n{code}\n\n{stars}\n"
    "% end ly snippet\n{stars}\n"
)


def ly(code: str) -> str:
    """Return a snippet file as the manuals contain it."""
    return LY.format(stars=STARS, code=code)


def test_a_snippet_is_what_the_manual_shows() -> None:
    assert extract_snippet(ly("\\drums { hh4 }")) == "\\drums { hh4 }"
    assert extract_snippet("\\drums { hh4 }") == ""


def test_translations_are_left_out() -> None:
    code = 'doctitle = "Bars"\n  texidocfr = "\nDes \\"mesures\\".\n\n"\n  doctitlede = "Takte"\nx'
    assert extract_snippet(ly(code)) == 'doctitle = "Bars"\nx'


def test_code_and_image_come_together(tmp_path: Path) -> None:
    write_image(tmp_path / "doc" / FOLDER / "lily-1.png")
    text(tmp_path / "html" / FOLDER / "lily-1.ly", ly('\\header { doctitle = "Two  bars" }'))
    text(tmp_path / "html" / FOLDER / "lily-2.ly", ly("no picture"))
    (document,) = read_lilypond(
        {"lilypond-doc": tmp_path / "doc", "lilypond-doc-html": tmp_path / "html"}
    )
    assert document.id == "b1/lily-1"
    assert document.text == 'music notation: Two bars\n\\header { doctitle = "Two  bars" }'
    assert document.attributes == {
        "caption": "music notation: Two bars",
        "category": "music notation",
    }
