"""Furniture out of libraries that are archives."""

from __future__ import annotations

import zipfile
from pathlib import Path

from calumma.corpora.sources.sweet_home_3d import catalog_entries, read_sweet_home_3d
from tests.corpora.packages import write_image

CATALOG = (
    "name#1=Fauteuil \\u00e9pais\ncategory#1=Chairs\ntags#1=seat\nicon#1=/icons/a.png\n"
    "width#1=45\ndepth#1=46\nheight#1=98\nname#2=No icon\nicon#2=/icons/gone.png\n"
)


def test_pieces_have_names_tags_and_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/sweethome3d/furniture"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "BlendSwap-CC-0.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOG)
        archive.write(write_image(tmp_path / "a.png"), "icons/a.png")
    (document,) = read_sweet_home_3d({"sweethome3d-furniture": tmp_path})
    assert document.text == "Fauteuil épais"
    assert document.license == "CC0-1.0"
    assert document.images[0].open().size == (64, 64)
    assert document.attributes == {
        "caption": "Fauteuil épais",
        "category": "Chairs",
        "keywords": "seat",
        "size": "45 x 46 x 98 cm",
        "creator": "BlendSwap-CC-0",
    }


def test_comments_are_no_entries() -> None:
    assert catalog_entries("# name#1=x\nname#2=y\n") == {2: {"name": "y"}}
