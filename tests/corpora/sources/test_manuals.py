"""Documentation: pages with images, without the decorations of every page."""

import sys
from pathlib import Path

import pytest

from calumma.corpora.sources.manuals import PageImage, illustrated_page_reader, page_text_reader, read_page
from calumma.documents.document import Image, Text
from calumma.documents.html import normalize_whitespace
from calumma.errors import CorpusError
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


def segments(root: Path, body: str) -> list[object]:
    page = text(root / "page.html", f"<html><head><title>T</title></head><body>{body}</body></html>")
    return list(read_page(page, root))


def test_boilerplate_of_the_page_is_left_out(tmp_path: Path) -> None:
    body = '<nav>menu</nav><div class="sphinxsidebar">side</div><p>text</p><script>x</script>'
    assert segments(tmp_path, body) == ["text"]


def test_the_main_part_is_taken_where_there_is_one(tmp_path: Path) -> None:
    body = '<p>around</p><div role="main"><p>the text of the page</p></div>'
    assert segments(tmp_path, body) == ["the text of the page"]


def test_a_small_main_part_is_not_believed(tmp_path: Path) -> None:
    assert segments(tmp_path, "<main>x</main><p>a long text beside it</p>") == ["x\na long text beside it"]


def test_text_after_skipped_elements_is_kept(tmp_path: Path) -> None:
    assert segments(tmp_path, "<p>a <!-- no --><script>x</script>b</p>") == ["a b"]


def test_figures_need_a_size_and_a_place_inside_the_package(tmp_path: Path) -> None:
    write_image(tmp_path / "outside.png")
    root = tmp_path / "package"
    large = write_image(root / "large.png", (48, 48))
    write_image(root / "small.png", (47, 90))
    write_image(root / "x_logo.png")
    body = "".join(
        f'<img src="{name}" alt="a figure">'
        for name in (
            "large.png?x=1", "small.png", "x_logo.png", "gone.png", "../outside.png",
            "https://example.org/a.png", "data:image/png;base64,xx", "http://[bad",
        )
    )  # fmt: skip
    assert segments(root, body) == [PageImage(large.resolve(), "a figure")]


def test_code_keeps_its_indents_and_text_does_not_sprawl() -> None:
    assert normalize_whitespace("if a:\n    b  =  c ¶\n\n\n") == "if a:\n    b = c"


def test_an_empty_page_is_empty(tmp_path: Path) -> None:
    assert read_page(text(tmp_path / "a.html", ""), tmp_path) == []


def test_without_lxml_the_way_to_get_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml", None)
    monkeypatch.setitem(sys.modules, "lxml.html", None)
    with pytest.raises(CorpusError) as caught:
        segments(tmp_path, "")
    assert str(caught.value) == (
        "this corpus is read from HTML pages, and lxml is not installed; expected it to read them. "
        "Install it: pip install 'calumma[corpora]'."
    )
