"""Documentation: pages with images, without the decorations of every page."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.manuals import illustrated_page_reader, page_text_reader
from calumma.documents.document import Image, Text
from tests.corpora.packages import text, write_image

WORDS = "word " * 30


def page(root: Path, name: str, body: str) -> None:
    text(root / f"doc/{name}.html", f"<html><body>{body}</body></html>")


def test_text_and_images_are_in_reading_order(tmp_path: Path) -> None:
    write_image(tmp_path / "doc/a.png")
    page(tmp_path, "one", f'<h1>Title</h1><p>{WORDS}</p><img src="a.png"><p>after</p>')
    (document,) = illustrated_page_reader("p", "doc")({"p": tmp_path})
    first, image, last = document.content
    assert isinstance(first, Text) and first.text.startswith("Title\nword word")
    assert isinstance(image, Image) and image.open().size == (64, 64)
    assert last == Text("after")
    assert document.id == "one"
    assert document.attributes == {"title": "Title"}


def test_pages_without_images_or_words_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "doc/a.png")
    page(tmp_path, "no-words", '<img src="a.png">')
    page(tmp_path, "no-pictures", WORDS)
    page(tmp_path, "genindex", f'{WORDS}<img src="a.png">')
    page(tmp_path, "one.fr", f'{WORDS}<img src="a.png">')
    assert list(illustrated_page_reader("p", "doc")({"p": tmp_path})) == []


def test_an_image_on_very_many_pages_is_a_decoration(tmp_path: Path) -> None:
    write_image(tmp_path / "doc/logo-like.png")
    write_image(tmp_path / "doc/own.png")
    for number in range(9):
        page(tmp_path, f"p{number}", f'{WORDS}<img src="logo-like.png">')
    page(tmp_path, "p9", f'{WORDS}<img src="own.png">')
    assert [d.id for d in illustrated_page_reader("p", "doc")({"p": tmp_path})] == ["p9"]


def test_of_texts_images_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "doc/a.png")
    page(tmp_path, "one", f'<h1>Title</h1><p>{WORDS}</p><img src="a.png"><p>after</p>')
    page(tmp_path, "two", f'<div>Index</div><div id="DisplayArea">{WORDS}</div>')
    one, two = page_text_reader("p", "doc")({"p": tmp_path})
    assert not one.images
    assert one.text.startswith("Title\nword word") and one.text.endswith("word\nafter")
    assert two.text == WORDS.strip()
