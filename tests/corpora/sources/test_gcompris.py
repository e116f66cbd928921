"""Words with images, in a Qt resource file."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.corpora.sources.gcompris import read_gcompris, read_resources
from calumma.errors import CorpusError
from tests.corpora.packages import write_image
from tests.corpora.qres import qres


def test_a_file_is_named_by_what_it_shows(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.webp").read_bytes()
    path = tmp_path / "usr/share/gcompris-qt/rcc/lang.rcc"
    path.parent.mkdir(parents=True)
    path.write_bytes(qres("words_sample", {"ice_cream.webp": image, "list.json": b"{}"}))
    (document,) = read_gcompris({"gcompris-qt-data": tmp_path})
    assert (document.id, document.text) == ("ice_cream", "ice cream")
    assert document.images[0].open().size == (64, 64)
    assert document.attributes == {"caption": "ice cream", "category": "words"}


@pytest.mark.parametrize("compressed", [False, True])
def test_files_are_found_by_their_paths(compressed: bool) -> None:
    files = {"a.txt": b"apple", "b.txt": b"bee"}
    found = read_resources(qres("words", files, compressed=compressed))
    assert found == {"/words/a.txt": b"apple", "/words/b.txt": b"bee"}


def test_other_files_are_refused() -> None:
    with pytest.raises(CorpusError) as caught:
        read_resources(b"PK..")
    assert str(caught.value) == (
        "a package has no Qt resource file; expected one that begins with 'qres'. Remove the "
        "package from the cache and fetch again."
    )
