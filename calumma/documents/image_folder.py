"""A folder of pictures as documents: each file one document of one picture, without text."""

from __future__ import annotations

from collections.abc import Iterator

from calumma.documents.document import Document, Image
from calumma.documents.error_policy import OnError, stop
from calumma.documents.image_formats import IMAGE_SUFFIXES
from calumma.documents.paths import AnyPath, list_dir


def image_files(folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, AnyPath]]:
    """The files of pictures in a folder, searched to the bottom, in the order of their paths.

    What begins with a dot is left out.

    Returns:
        The path inside the folder of each, and the file.
    """
    for found, is_folder in list_dir(folder):
        if is_folder:
            yield from image_files(found, f"{prefix}{found.name}/")
        elif found.suffix.lower() in IMAGE_SUFFIXES:
            yield f"{prefix}{found.name}", found


def read_image_folder(folder: AnyPath, on_error: OnError = stop) -> Iterator[Document]:
    """Each picture of a folder as a document; its id is the file's path inside the folder.

    Args:
        folder: holds files of pictures, at any depth.
        on_error: is never called: a picture that cannot be read shows when it is opened.
    """
    for name, path in image_files(folder):
        yield Document(id=name, source=folder.name, content=(Image(path=path),))
