"""HTML pages as documents."""

import base64
import sys
from pathlib import Path

import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.html import local_path, normalize_whitespace, read_html
from calumma.documents.readers import read_documents
from calumma.errors import DocumentError
from tests.documents.dropped import separate
from tests.images import png


def page(folder: Path, body: str) -> Path:
    path = folder / "page.html"
    path.write_text(f"<html><head><title>T</title></head><body>{body}</body></html>", "utf-8")
    return path


def test_text_and_images_come_in_reading_order(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a b.png").write_bytes(png(0, 60, 50))
    inside = base64.b64encode(png(1, 50, 50)).decode()
    body = (
        "<nav>menu</nav><h1>Birds</h1><p>A <b>red</b> one:</p><img src='images/a%20b.png'>"
        f"<p>and a blue one: <img src='data:image/png;base64,{inside}'></p><p>äöü</p>"
    )
    [document] = read_documents([page(tmp_path, body)])
    assert document == Document(
        id="page.html",
        source=tmp_path.name,
        content=(
            Text("Birds\nA red one:"),
            Image(path=tmp_path.resolve() / "images" / "a b.png"),
            Text("and a blue one:"),
            Image(data=png(1, 50, 50)),
            Text("äöü"),
        ),
        attributes={"title": "Birds"},
    )


def test_images_that_are_small_broken_elsewhere_or_on_the_web_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "small.png").write_bytes(png(0, 60, 47))
    (folder / "broken.png").write_bytes(b"no picture")
    (tmp_path / "outside.png").write_bytes(png(0, 60, 60))
    sources = (
        *("small.png", "broken.png", "../outside.png", "gone.png", "http://[bad", ""),
        *("https://example.org/a.png", "data:image/png,xx", "data:image/png;base64,x"),
    )
    body = "text" + "".join(f'<img src="{source}">' for source in sources)
    [document] = read_html(page(folder, body))
    assert document.content == (Text("text"),)


def test_a_page_of_nothing_is_a_fault_that_can_be_passed_over(tmp_path: Path) -> None:
    path = page(tmp_path, "<script>x</script>")
    with pytest.raises(DocumentError) as caught:
        list(read_html(path))
    assert str(caught.value) == (f"{path}: an HTML page without text or images; expected some. Remove the file.")
    documents, details = separate(read_html(path, "drop"))
    assert documents == [] and len(details) == 1


def test_a_missing_page_raises(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        list(read_html(tmp_path / "gone.html"))
    assert str(caught.value) == (
        f"{tmp_path / 'gone.html'}: cannot be read (No such file or directory); expected an HTML "
        "page. Fix the path or its permissions."
    )


def test_without_lxml_the_way_to_get_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml", None)
    monkeypatch.setitem(sys.modules, "lxml.html", None)
    path = page(tmp_path, "text")
    with pytest.raises(DocumentError) as caught:
        list(read_html(path))
    assert str(caught.value) == (
        f"{path} is an HTML page, and lxml is not installed; expected it to read the page. Install "
        "it: pip install 'calumma[corpora]'."
    )


def test_code_keeps_its_indents_and_text_does_not_sprawl() -> None:
    assert normalize_whitespace("if a:\n    b  =  c ¶\n\n\n") == "if a:\n    b = c"


def test_an_address_with_a_question_is_the_file_before_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert local_path("a.png?x=1#top", tmp_path) == (tmp_path / "a.png").resolve()
