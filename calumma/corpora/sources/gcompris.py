"""GCompris' words for children: a picture each, named by what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.qt_resources import read_resources
from calumma.documents.document import Document, Image, Text

_FILE = "usr/share/gcompris-qt/rcc/lang.rcc"


def read_gcompris(folders: PackageFolders) -> Iterator[Document]:
    """Read the words in alphabetical order."""
    files = read_resources((folders["gcompris-qt-data"] / _FILE).read_bytes())
    for name in sorted(files):
        path = PurePosixPath(name)
        if path.parent.name != "words_sample" or path.suffix != ".webp":
            continue
        caption = collapse_whitespace(path.stem.replace("_", " "))
        yield Document(
            id=path.stem,
            content=(Image(data=files[name]), Text(caption)),
            attributes={"caption": caption, "category": "words"},
        )
