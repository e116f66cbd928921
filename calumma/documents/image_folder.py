"""Readers of image folders.

Each image file is one document of one image, followed by the text of a `.txt` file of the same name
if there is one. `metadata.csv` of Hugging Face's imagefolder names images and their captions
(`metadata.jsonl` is read as JSON Lines).
"""

import csv
import io
import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from calumma.documents.column_account import ColumnAccount
from calumma.documents.document import Document, Image, Text
from calumma.documents.error_policy import DroppedDocument, OnError, drop_or_raise, unreadable_file_error
from calumma.documents.image_formats import IMAGE_SUFFIXES
from calumma.documents.paths import AnyPath, list_dir
from calumma.documents.record import document_from_record
from calumma.errors import DocumentError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
"""Files that list the images of an imagefolder."""


def image_files(folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, AnyPath, AnyPath | None]]:
    """Yield (path in the folder, file, caption's file) of a folder tree's images, sorted by path.

    Hidden files and folders are skipped.
    """
    entries = list_dir(folder)
    captions = {_stem(path): path for path, _ in entries if path.suffix.lower() == ".txt"}
    for found, is_folder in entries:
        if is_folder:
            yield from image_files(found, f"{prefix}{found.name}/")
        elif found.suffix.lower() in IMAGE_SUFFIXES:
            yield f"{prefix}{found.name}", found, captions.get(_stem(found))


def _stem(path: AnyPath) -> str:
    return path.name.removesuffix(path.suffix)


def read_image_folder(
    folder: AnyPath, on_error: OnError = "raise", ignored: Collection[str] = ()
) -> Iterator[Document | DroppedDocument]:
    """Read each image of a folder as a document; its id is the file's path inside the folder.

    Args:
        folder: a folder of image files, at any depth.
        on_error: what to do at a caption that is not UTF-8; a broken image is found only when it is
            opened.
        ignored: unused; a folder has no columns.
    """
    for name, path, caption in image_files(folder):
        try:
            text = _read_text(caption).strip() if caption is not None else ""
        except DocumentError as error:
            yield drop_or_raise(error, on_error)
            continue
        parts = (Image(path=path), Text(text)) if text else (Image(path=path),)
        account = ColumnAccount()
        account.add("image", path.suffix.lower().removeprefix("."))
        account.add("text", "txt", 1 if text else 0)
        yield Document(id=name, source=folder.name, content=parts, account=account)


def unlisted_images(metadata: Path, on_error: OnError) -> Iterator[Document | DroppedDocument]:
    """Refuse each image of an imagefolder that its metadata does not list.

    Images of a folder below that has metadata of its own are not looked at.

    Raises:
        DocumentError: there is one, under "raise".
    """
    text = metadata.read_bytes().decode(errors="replace")
    names = (name for name in _image_names(text) if name.lower().endswith(IMAGE_SUFFIXES))
    listed = {(metadata.parent / name.replace("\0", "")).resolve() for name in names}
    for name, path, _ in image_files(metadata.parent):
        assert isinstance(path, Path)
        folders = path.relative_to(metadata.parent).parents
        has_own = any((metadata.parent / f / m).is_file() for f in list(folders)[:-1] for m in METADATA_NAMES)
        if path.resolve() not in listed and not has_own:
            unlisted = DocumentError(
                f"{metadata.parent}: the image {name} is not listed in {metadata.name}; expected a line for every "
                "image. Add the line, or move the image away."
            )
            yield drop_or_raise(unlisted, on_error)


def _image_names(text: str) -> Iterator[str]:
    """Yield the names of image files in JSON lines or CSV."""
    if text.lstrip().startswith("{"):
        for line in text.split("\n"):
            with suppress(ValueError, RecursionError):
                yield from _strings(json.loads(line))
    else:
        with suppress(csv.Error):
            for row in csv.reader(io.StringIO(text, newline="")):
                yield from row


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(item)


def _read_text(path: AnyPath) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{path}: byte {error.start} is not UTF-8; expected text in UTF-8. Save it as UTF-8, or drop the document."
        ) from error
    except OSError as error:
        raise unreadable_file_error(path, error, "a text in UTF-8") from error


def read_metadata_csv(
    path: AnyPath, on_error: OnError = "raise", ignored: Collection[str] = ()
) -> Iterator[Document | DroppedDocument]:
    """Read `metadata.csv` of an imagefolder: one document per row, with the columns of a record.

    Raises:
        DocumentError: the file cannot be read; under "raise" also a bad row.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(_read_text(path), newline="")))
    except (DocumentError, csv.Error) as error:
        if not isinstance(error, DocumentError):
            error = DocumentError(f"{path}: not CSV ({error}); expected a header and rows. Write the file again.")
        yield drop_or_raise(error, on_error)
        return
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        try:
            if None in row or None in row.values():
                raise DocumentError(
                    f"{where}: another number of cells than the header has; expected one for each "
                    "column. Put cells with commas in quotes."
                )
            yield document_from_record(row, path.parent, where, ignored=ignored)
        except DocumentError as error:
            yield drop_or_raise(error, on_error)
    if isinstance(path, Path):
        yield from unlisted_images(path, on_error)
