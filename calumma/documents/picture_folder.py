"""A folder of pictures as documents: each file one document of one picture, without text."""

from __future__ import annotations

from collections.abc import Iterator

from calumma.documents.document import Document, Image
from calumma.documents.faults import OnError, stop
from calumma.documents.picture_file import PICTURE_SUFFIXES
from calumma.documents.places import Place, entries


def picture_files(folder: Place, prefix: str = "") -> Iterator[tuple[str, Place]]:
    """The files of pictures in a folder, searched to the bottom, in the order of their paths.

    What begins with a dot is left out.

    Returns:
        The path inside the folder of each, and the file.
    """
    for found, is_folder in entries(folder):
        if is_folder:
            yield from picture_files(found, f"{prefix}{found.name}/")
        elif found.suffix.lower() in PICTURE_SUFFIXES:
            yield f"{prefix}{found.name}", found


def read_pictures(folder: Place, on_error: OnError = stop) -> Iterator[Document]:
    """Each picture of a folder as a document; its id is the file's path inside the folder.

    Args:
        folder: holds files of pictures, at any depth.
        on_error: is never called: a picture that cannot be read shows when it is opened.
    """
    for name, path in picture_files(folder):
        yield Document(id=name, source=folder.name, content=(Image(path=path),))
