"""The Bible is unpacked and cut into chapters."""

from __future__ import annotations

import struct
from pathlib import Path

from calumma.corpora.sources.bible import read, text_of
from tests.corpora.packed import pack

TEXT = (
    b"Holy Bible.\nGe1:1 In the beginning.\nGe1:2 And the earth.\nGe2:1 Thus the heavens.\n"
    b"1Cor13:13 And now abideth faith.\n"
)


def data_file(*texts: bytes) -> bytes:
    """A data file of so many pieces."""
    pieces = [pack(text) for text in texts]
    first = 92 + 4 * len(pieces)
    starts = [first + sum(map(len, pieces[:number])) for number in range(len(pieces))]
    head = bytes(88) + struct.pack(f">{1 + len(pieces)}I", len(pieces), *starts)
    return head + b"".join(pieces)


def test_pieces_are_put_together() -> None:
    assert text_of(data_file(TEXT[:30], TEXT[30:])) == TEXT.decode()


def test_a_chapter_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/bible.data").write_bytes(data_file(TEXT))
    first, second, third = read({"bible-kjv-text": tmp_path})
    assert first.id == "Ge-001"
    assert first.text == "Genesis, chapter 1\n\nIn the beginning.\nAnd the earth."
    assert second.id == "Ge-002"
    assert third.attributes == {
        "title": "1 Corinthians, chapter 13",
        "text": "1 Corinthians",
    }
