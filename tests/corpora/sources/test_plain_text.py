"""Documentation in plain files."""

from __future__ import annotations

import gzip
from pathlib import Path

from calumma.corpora.sources.plain_text import plain_text_reader, roff_to_text, strip_license_comment
from tests.corpora.packages import text

WORDS = " ".join(["word"] * 20)


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
