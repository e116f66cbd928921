"""Reader of image folders: each image file is one document of one image, without text."""

from __future__ import annotations

from collections.abc import Iterator

from calumma.documents.document import Document, Image
from calumma.documents.error_policy import OnError
from calumma.documents.image_formats import IMAGE_SUFFIXES
from calumma.documents.paths import AnyPath, list_dir


def image_files(folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, AnyPath]]:
    """Yield (path in the folder, file) of the image files in a folder tree, sorted by path.

    Hidden files and folders are skipped.
    """
    for found, is_folder in list_dir(folder):
        if is_folder:
            yield from image_files(found, f"{prefix}{found.name}/")
        elif found.suffix.lower() in IMAGE_SUFFIXES:
            yield f"{prefix}{found.name}", found


def read_image_folder(folder: AnyPath, on_error: OnError = "raise") -> Iterator[Document]:
    """Read each image of a folder as a document; its id is the file's path inside the folder.

    Args:
        folder: a folder of image files, at any depth.
        on_error: not used: a broken image is found only when it is opened.
    """
    for name, path in image_files(folder):
        yield Document(id=name, source=folder.name, content=(Image(path=path),))
