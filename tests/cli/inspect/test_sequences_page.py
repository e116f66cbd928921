"""Rows decoded to a page."""

from __future__ import annotations

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.cli.inspect.sequences_page import rows_page
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers


def test_rows_show_their_text_and_pictures_by_owner(
    reader: ShardReader, tokenizers: Tokenizers
) -> None:
    stream = PackedLoader(reader, DataConfig(seq_len=64, global_batch_size=4))
    stream.set_mixture({"pairs": 1.0, "text": 1.0})
    page = rows_page(stream, tokenizers, 3, "rows & <rows>")
    assert page.count("<section>") == 3
    assert "<h1>rows &amp; &lt;rows&gt;</h1>" in page
    assert "of a red circle" in page and "words words" in page
    assert 'src="data:image/png;base64,' in page and 'alt="an image of 4 codes"' in page
    assert 'title="pairs, ' in page and 'title="text, ' in page
