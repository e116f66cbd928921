"""Packed sequences decoded to an HTML page."""

from __future__ import annotations

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.cli.inspect.sequences_page import highlighted, sections_page, sequences_page
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers


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
