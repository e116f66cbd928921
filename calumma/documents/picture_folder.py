"""A folder of pictures as documents: each file one document of one picture, without text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calumma.documents.document import Document, Image
from calumma.documents.faults import OnError, stop

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def picture_files(folder: Path) -> list[Path]:
    """The files of pictures in a folder, searched to the bottom, in the order of their paths.

    What begins with a dot is left out.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def read_pictures(folder: Path, on_error: OnError = stop) -> Iterator[Document]:
    """Each picture of a folder as a document; its id is the file's path inside the folder.

    Args:
        folder: holds files of pictures, at any depth.
        on_error: is never called: a picture that cannot be read shows when it is opened.
    """
    for path in picture_files(folder):
        name = path.relative_to(folder).as_posix()
        yield Document(id=name, source=folder.name, content=(Image(path=path),))
