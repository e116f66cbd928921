"""Sweet Home 3D's furniture: renders of everyday objects, with tags and real sizes."""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.documents.document import Document, Image, Text

_FOLDER = "usr/share/sweethome3d/furniture"
_CATALOG = "PluginFurnitureCatalog.properties"
_LICENCES = {"BlendSwap-CC-0": "CC0-1.0"}
_ENTRY = re.compile(r"^(\w+)#(\d+)=(.*)$", re.MULTILINE)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def read_sweet_home_3d(folders: PackageFolders) -> Iterator[Document]:
    """Read the pieces of furniture of every library, in the order of the library's catalog."""
    for library in sorted((folders["sweethome3d-furniture"] / _FOLDER).glob("*.sh3f")):
        yield from _library(library)


def _library(path: Path) -> Iterator[Document]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pieces = catalog_entries(archive.read(_CATALOG).decode("latin-1"))
        for number, piece in pieces.items():
            icon = piece.get("icon", "").lstrip("/")
            caption = collapse_whitespace(piece.get("name", ""))
            if icon not in names or not caption:
                continue
            size = " x ".join(piece.get(side, "?") for side in ("width", "depth", "height"))
            yield Document(
                id=f"{path.stem}-{number:03d}",
                license=_LICENCES.get(path.stem, "CC-BY-3.0"),
                content=(Image(data=archive.read(icon)), Text(caption)),
                attributes={
                    "caption": caption,
                    "category": piece.get("category", ""),
                    "keywords": piece.get("tags", ""),
                    "size": f"{size} cm",
                    "creator": piece.get("creator", path.stem),
                },
            )


def catalog_entries(text: str) -> dict[int, dict[str, str]]:
    r"""The entries of a catalog in Java's properties format, by number.

    >>> catalog_entries("name#1=Chair\nicon#1=/a.png\n# name#2=no\n")
    {1: {'name': 'Chair', 'icon': '/a.png'}}
    """
    entries: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for key, number, value in _ENTRY.findall(text):
        entries[int(number)][key] = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), value.strip())
    return dict(entries)
