"""Words with pictures, out of a resource file."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.gcompris import read_gcompris
from tests.corpora.packages import picture
from tests.corpora.qres import qres


def test_a_file_is_named_by_what_it_shows(tmp_path: Path) -> None:
    image = picture(tmp_path / "image.webp").read_bytes()
    path = tmp_path / "usr/share/gcompris-qt/rcc/lang.rcc"
    path.parent.mkdir(parents=True)
    path.write_bytes(qres("words_sample", {"ice_cream.webp": image, "list.json": b"{}"}))
    (document,) = read_gcompris({"gcompris-qt-data": tmp_path})
    assert (document.id, document.text) == ("ice_cream", "ice cream")
    assert document.images[0].open().size == (64, 64)
    assert document.attributes == {"caption": "ice cream", "category": "words"}
