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
_LICENSES = {"BlendSwap-CC-0": "CC0-1.0"}
_ENTRY = re.compile(r"^(\w+)#(\d+)=(.*)$", re.MULTILINE)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def read_sweet_home_3d(folders: PackageFolders) -> Iterator[Document]:
    """Read the furniture of every library, in the order of its catalog."""
    for library in sorted((folders["sweethome3d-furniture"] / _FOLDER).glob("*.sh3f")):
        yield from _library(library)


def _library(path: Path) -> Iterator[Document]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        entries = catalog_entries(archive.read(_CATALOG).decode("latin-1"))
        for number, entry in entries.items():
            icon = entry.get("icon", "").lstrip("/")
            caption = collapse_whitespace(entry.get("name", ""))
            if icon not in names or not caption:
                continue
            size = " x ".join(entry.get(side, "?") for side in ("width", "depth", "height"))
            yield Document(
                id=f"{path.stem}-{number:03d}",
                license=_LICENSES.get(path.stem, "CC-BY-3.0"),
                content=(Image(data=archive.read(icon)), Text(caption)),
                attributes={
                    "caption": caption,
                    "category": entry.get("category", ""),
                    "keywords": entry.get("tags", ""),
                    "size": f"{size} cm",
                    "creator": entry.get("creator", path.stem),
                },
            )


def catalog_entries(text: str) -> dict[int, dict[str, str]]:
    r"""Parse the entries of a catalog in Java's properties format, by number.

    >>> catalog_entries("name#1=Chair\nicon#1=/a.png\n# name#2=no\n")
    {1: {'name': 'Chair', 'icon': '/a.png'}}
    """
    entries: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for key, number, value in _ENTRY.findall(text):
        entries[int(number)][key] = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), value.strip())
    return dict(entries)
