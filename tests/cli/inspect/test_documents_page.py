"""Statistics and a sample of documents, and their page."""

from __future__ import annotations

from collections import Counter

from calumma.cli.inspect.documents_page import NUM_DOCUMENTS, DocumentStats, documents_page
from calumma.documents.document import Document, Image, Text, Turn
from tests.documents.image_files import RED


def stats_of(documents: list[Document]) -> DocumentStats:
    stats = DocumentStats()
    stats.update(documents)
    return stats


def test_the_sample_is_spread_over_all_documents_and_reproducible() -> None:
    many = [Document(id=str(n), source=f"s{n % 2}", content=(Text("abc"),)) for n in range(4000)]
    stats = stats_of(many)
    assert (stats.sources, stats.num_chars) == (Counter(s0=2000, s1=2000), 12000)
    numbers = sorted(int(document.id) for document in stats.samples)
    assert len(set(numbers)) == NUM_DOCUMENTS
    assert numbers[4] < 2000 < numbers[-5]
    assert stats_of(many).samples == stats.samples
    assert [document.id for document in stats_of(many[:3]).samples] == ["0", "1", "2"]


def test_a_page_shows_text_images_roles_and_errors() -> None:
    talk = (Turn("user", (Text("<draw>"), Image(data=b"no"))), Turn("assistant", (Image(data=RED),)))
    documents = [
        Document(id="a&b", license="MIT", attributes={"color": "red"}, content=(Text("x" * 2100),)),
        Document(id="talk", messages=talk),
    ]
    made = documents_page(stats_of(documents), "d.parquet")
    assert "2 documents sampled from 2." in made
    assert "a&amp;b" in made
    assert "no source; MIT; color: red" in made
    assert "x" * 2000 + "</span>" in made
    assert "... 100 more characters" in made
    assert "&lt;draw&gt;" in made
    assert made.count("data:image/png;base64,") == 1
    assert "not an image" in made
    assert 'title="user"' in made
    assert 'title="assistant"' in made
