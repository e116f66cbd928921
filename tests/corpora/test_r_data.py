"""R's databases: written by the tests, read back."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from calumma.corpora.r_data import read_database
from calumma.errors import CorpusError
from tests.corpora.r_database import write_database


def test_text_vectors_come_back(tmp_path: Path) -> None:
    variables = {"emma": ["Emma Woodhouse,", "", "handsome — é"], "gaps": ["a", None]}
    assert read_database(write_database(tmp_path / "a.rdx", variables)) == variables


@pytest.mark.parametrize("content", [b"no database", zlib.compress(b"A\n"), zlib.compress(b"X\n")])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.rdx"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="no R database that can be read") as caught:
        read_database(path)
    assert str(caught.value).endswith(
        "expected one of format 3 with vectors of text. Fetch the package again."
    )
