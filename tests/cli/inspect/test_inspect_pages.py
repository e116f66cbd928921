"""Packed sequences decoded to an HTML page."""

from collections import Counter

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.cli.inspect.inspect_pages import (
    NUM_DOCUMENTS,
    DocumentStats,
    documents_page,
    highlighted,
    sections_page,
    sequences_page,
)
from calumma.documents.document import Document, Image, Text, Turn
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from tests.documents.image_files import RED


def test_sequences_show_text_and_images_by_document(reader: ShardReader, tokenizers: Tokenizers) -> None:
    loader = PackedLoader(reader, DataConfig(seq_len=64, global_batch_size=4))
    loader.set_mixture({"pairs": 1.0, "text": 1.0})
    page = sequences_page(loader, tokenizers, 3, "a & <b>")
    assert page.count("<section>") == 3
    assert "<h1>a &amp; &lt;b&gt;</h1>" in page
    assert "of a red circle" in page and "words words" in page
    assert 'src="data:image/png;base64,' in page and 'alt="an image of 4 codes"' in page
    assert 'title="pairs, ' in page and 'title="text, ' in page


def test_a_page_has_its_sections_and_escapes_title_and_note() -> None:
    page = sections_page("<a>", "b & c", ["<b>one</b>", "two"])
    assert "<h1>&lt;a&gt;</h1><p>b &amp; c</p>" in page
    assert "<section><b>one</b></section><section>two</section>" in page


def test_neighbors_have_different_colors_and_a_tooltip_each() -> None:
    spans = [highlighted("x", number, 'of "it"') for number in range(9)]
    assert len(set(spans)) == 8
    assert spans[0] == spans[8]
    assert 'title="of &quot;it&quot;"' in spans[0]


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
