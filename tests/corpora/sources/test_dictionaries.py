"""Dictionaries of dictd."""

from __future__ import annotations

import gzip
from pathlib import Path

from calumma.corpora.sources.dictionaries import dictionary_reader
from tests.corpora.packages import text


def test_entries_are_found_by_the_index_and_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/dictd"
    text(folder / "x.index", "00-database-short\tA\tF\nfoo\tF\tE\nfubar\tF\tE\nbar\tJ\tE\n")
    with gzip.open(folder / "x.dict.dz", "wb") as file:
        file.write(b"name foo\nbar\n")
    (document,) = dictionary_reader("dict-x", "x")({"dict-x": tmp_path})
    assert document.text == "foo\n\nbar"
    assert document.attributes == {"title": "foo"}
