"""Qt's resource files."""

from __future__ import annotations

import pytest

from calumma.corpora.qt_resources import read_resources
from calumma.errors import CorpusError
from tests.corpora.qres import qres


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_by_their_paths(packed: bool) -> None:
    files = {"a.txt": b"apple", "b.txt": b"bee"}
    found = read_resources(qres("words", files, packed=packed))
    assert found == {"/words/a.txt": b"apple", "/words/b.txt": b"bee"}


def test_other_files_are_refused() -> None:
    with pytest.raises(CorpusError) as caught:
        read_resources(b"PK..")
    assert str(caught.value) == (
        "no Qt resource file found in a package; expected one that begins with 'qres'. The package "
        "is broken: remove it from the cache and fetch again."
    )
