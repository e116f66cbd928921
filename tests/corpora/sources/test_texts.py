"""Dictionaries of dictd."""

import gzip
from pathlib import Path

from calumma.corpora.sources.texts import (
    GLOSSES_PER_DOCUMENT,
    dictionary_reader,
    gloss_line,
    plain_text_reader,
    read_wordnet,
    roff_to_text,
    strip_license_comment,
)
from tests.corpora.packages import text

LINE = "00001 03 a 02 afraid(p) 0 fear_struck 0 001 @ 000 n 0000 | filled with fear  "

WORDS = " ".join(["word"] * 20)


def test_entries_are_found_by_the_index_and_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/dictd"
    text(folder / "x.index", "00-database-short\tA\tF\nfoo\tF\tE\nfubar\tF\tE\nbar\tJ\tE\n")
    with gzip.open(folder / "x.dict.dz", "wb") as file:
        file.write(b"name foo\nbar\n")
    (document,) = dictionary_reader("dict-x", "x")({"dict-x": tmp_path})
    assert document.text == "foo\n\nbar"
    assert document.attributes == {"title": "foo"}


def package(root: Path, lines: int) -> dict[str, Path]:
    for suffix in ("noun", "verb", "adj", "adv"):
        count = lines if suffix == "adj" else 0
        text(root / f"usr/share/wordnet/data.{suffix}", "  1 licence\n" + f"{LINE}\n" * count)
    return {"wordnet-base": root}


def test_a_line_is_words_part_of_speech_and_gloss() -> None:
    assert gloss_line(LINE, "adjective") == "afraid, fear struck (adjective): filled with fear"


def test_many_glosses_make_a_document(tmp_path: Path) -> None:
    documents = list(read_wordnet(package(tmp_path, GLOSSES_PER_DOCUMENT + 1)))
    assert [document.id for document in documents] == ["adjective-0000", "adjective-0001"]
    assert documents[0].text.count("\n") == GLOSSES_PER_DOCUMENT - 1
    assert documents[1].attributes["text"] == "adjective"


def test_files_are_read_packed_or_not(tmp_path: Path) -> None:
    text(tmp_path / "doc/b/plain.rst", f".. SPDX-License-Identifier: GPL-2.0\n{WORDS}\n")
    text(tmp_path / "doc/translations/x.rst", WORDS)
    text(tmp_path / "doc/short.rst", "See elsewhere.")
    (tmp_path / "doc/a.rst.gz").write_bytes(gzip.compress(WORDS.encode()))
    read = plain_text_reader("p", "doc", "**/*.rst*", strip_license_comment, exclude="/translations/")
    found = list(read({"p": tmp_path}))
    assert [(d.id, d.text) for d in found] == [("a.rst", WORDS), ("b/plain.rst", WORDS)]
    assert found[1].attributes == {"title": "b/plain.rst"}


def test_roff_keeps_words_and_leaves_out_requests() -> None:
    page = (
        '.\\" A licence.\n.TH issue 5\n.SH NAME\nissue \\- a file\n.SH "SEE ALSO"\nIt holds\n'
        ".I /etc/issue\n.TP\n\\fB@\\fP\\fIchar\\fP and\\e \\(bu\n.RB [ \\-a ]\n.nf\nend\n"
    )
    assert roff_to_text(page) == ("NAME\nissue - a file\n\nSEE ALSO\nIt holds\n/etc/issue\n\n@char and\\ *\n[-a]\nend")
