"""Stamps with captions in text files."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.tuxpaint import read_tuxpaint
from tests.corpora.packages import SVG, text, write_image

STAMPS = "usr/share/tuxpaint/stamps"


def test_the_first_line_is_the_caption(tmp_path: Path) -> None:
    write_image(tmp_path / STAMPS / "animals/birds/owl.png")
    text(tmp_path / STAMPS / "animals/birds/owl.txt", "An owl.\nde.utf8=Eine Eule.\n")
    text(tmp_path / STAMPS / "food/pear.svg", SVG)
    text(tmp_path / STAMPS / "food/pear.txt", "A pear.")
    found = list(read_tuxpaint({"tuxpaint-stamps-default": tmp_path}))
    assert [(d.id, d.text) for d in found] == [("animals/birds/owl", "An owl."), ("food/pear", "A pear.")]
    assert found[0].attributes == {"caption": "An owl.", "category": "animals", "subgroup": "birds"}


def test_words_without_an_image_and_images_without_words_are_left_out(tmp_path: Path) -> None:
    text(tmp_path / STAMPS / "a/alone.txt", "Nothing.")
    write_image(tmp_path / STAMPS / "a/silent.png")
    text(tmp_path / STAMPS / "a/silent.txt", "")
    text(tmp_path / STAMPS / "a/broken.png", "no image")
    text(tmp_path / STAMPS / "a/broken.txt", "Broken.")
    assert list(read_tuxpaint({"tuxpaint-stamps-default": tmp_path})) == []
