"""Documents drawn from many, as a page."""

from __future__ import annotations

from collections import Counter

from calumma.cli.inspect.documents_page import SHOWN, Survey, documents_page
from calumma.documents.document import Document, Image, Text, Turn
from tests.documents.image_files import RED


def survey(documents: list[Document]) -> Survey:
    found = Survey()
    found.take(documents)
    return found


def test_documents_drawn_are_spread_over_all_and_the_same_again() -> None:
    many = [Document(id=str(n), source=f"s{n % 2}", content=(Text("abc"),)) for n in range(4000)]
    found = survey(many)
    assert (found.sources, found.letters) == (Counter(s0=2000, s1=2000), 12000)
    numbers = sorted(int(document.id) for document in found.drawn)
    assert len(set(numbers)) == SHOWN
    assert numbers[4] < 2000 < numbers[-5]
    assert survey(many).drawn == found.drawn
    assert [document.id for document in survey(many[:3]).drawn] == ["0", "1", "2"]


def test_a_page_shows_text_pictures_roles_and_what_cannot_be_opened() -> None:
    talk = (
        Turn("user", (Text("<draw>"), Image(data=b"no"))),
        Turn("assistant", (Image(data=RED),)),
    )
    documents = [
        Document(
            id="a&b", license="MIT", attributes={"colour": "red"}, content=(Text("x" * 2100),)
        ),
        Document(id="talk", messages=talk),
    ]
    made = documents_page(survey(documents), "d.parquet")
    assert "2 documents drawn from 2." in made
    assert "a&amp;b" in made
    assert "no source; MIT; colour: red" in made
    assert "x" * 2000 + "</span>" in made
    assert "... 100 letters more" in made
    assert "&lt;draw&gt;" in made
    assert made.count("data:image/png;base64,") == 1
    assert "holds no picture that can be read" in made
    assert 'title="user"' in made
    assert 'title="assistant"' in made
