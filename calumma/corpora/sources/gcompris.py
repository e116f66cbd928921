"""GCompris' words for children: one image each, in Qt's resource file format."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.documents.document import Document, Image, Text
from calumma.errors import CorpusError

_FILE = "usr/share/gcompris-qt/rcc/lang.rcc"
_FOLDER = 2
_ZLIB = 1
"""Flags of a node."""


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


def read_resources(data: bytes) -> dict[str, bytes]:
    """Read the files of a Qt resource file by path; only zlib compression is supported.

    Raises:
        CorpusError: the data is not a resource file.
    """
    if data[:4] != b"qres":
        raise CorpusError(
            "a package has no Qt resource file; expected one that begins with 'qres'. Remove the "
            "package from the cache and fetch again."
        )
    version, tree, contents, names = struct.unpack_from(">IIII", data, 4)
    size = 14 if version < 2 else 22  # later versions add the time of the last change

    def walk(number: int, parent: str) -> Iterator[tuple[str, bytes]]:
        offset = tree + number * size
        name_at, flags = struct.unpack_from(">IH", data, offset)
        path = f"{parent}/{_name(data, names + name_at)}" if number else ""
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", data, offset + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif flags in (0, _ZLIB):
            (content_at,) = struct.unpack_from(">I", data, offset + 10)
            yield path, _content(data, contents + content_at, compressed=flags == _ZLIB)

    return dict(walk(0, ""))


def _name(data: bytes, offset: int) -> str:
    (length,) = struct.unpack_from(">H", data, offset)
    return data[offset + 6 : offset + 6 + 2 * length].decode("utf-16-be")


def _content(data: bytes, offset: int, *, compressed: bool) -> bytes:
    (length,) = struct.unpack_from(">I", data, offset)
    content = data[offset + 4 : offset + 4 + length]
    return zlib.decompress(content[4:]) if compressed else content
