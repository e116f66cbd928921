"""Entry point of all readers: documents of files, folders, globs and URLs, one at a time.

A folder or a glob means all document files in it, sorted by name, so the same paths give the
same documents in the same order. A folder with images and no documents means its images.
"""

import dataclasses
import glob
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument, OnError, os_error_text
from calumma.documents.html import read_html
from calumma.documents.image_folder import image_files, read_image_folder, read_metadata_csv
from calumma.documents.jsonl import read_jsonl
from calumma.documents.parquet import is_saved_dataset, read_parquet, read_saved_dataset
from calumma.documents.paths import AnyPath, RemotePath, list_dir, parse_path
from calumma.documents.webdataset import read_tar
from calumma.errors import DocumentError

FileReader = Callable[[AnyPath, OnError, Collection[str]], Iterator[Document | DroppedDocument]]

READERS: dict[str, FileReader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".jsonl.zst": read_jsonl,
    ".parquet": read_parquet,
    ".tar": read_tar,
    ".html": read_html,
}
"""The reader of a file, by the end of its name."""

_EXPECTED = f"{', '.join(READERS)} or a folder written by save_to_disk"


@overload
def read_documents(
    paths: Sequence[AnyPath | str], on_error: Literal["raise"] = "raise", ignored: Collection[str] = ()
) -> Iterator[Document]: ...


@overload
def read_documents(
    paths: Sequence[AnyPath | str], on_error: OnError, ignored: Collection[str] = ()
) -> Iterator[Document | DroppedDocument]: ...


def read_documents(
    paths: Sequence[AnyPath | str], on_error: OnError = "raise", ignored: Collection[str] = ()
) -> Iterator[Document | DroppedDocument]:
    """Read every document of files, folders and globs, in order, one in memory at a time.

    Args:
        paths: files, folders (searched recursively) or globs (`data/**/*.parquet`).
        on_error: what to do at a document that cannot be read.
        ignored: names of columns, and suffixes of tar members, that are not read.

    Raises:
        DocumentError: a path holds no documents; under "raise" also the first document that cannot
            be read. An unreadable *image* is found only when it is opened.
    """
    for path in paths:
        is_empty = True
        for file, reader in find_files(path):
            for document in with_source(reader(file, on_error, ignored), file):
                is_empty = False
                yield document
        if is_empty:
            raise DocumentError(
                f"{path}: no document found; expected at least one. Name another path, or remove this one."
            )


def with_source(
    documents: Iterator[Document | DroppedDocument], file: AnyPath
) -> Iterator[Document | DroppedDocument]:
    """Name the source of documents without one after their file or folder."""
    name = source_name(file)
    for document in documents:
        if isinstance(document, Document) and not document.source:
            document = dataclasses.replace(document, source=name)
        yield document


def source_name(file: AnyPath) -> str:
    """Return the source of documents of a file that name none.

    It is the file's name without its extension, or the name of the nearest folder if the file's is
    a number, a split such as "train", or "data"; of HTML pages the folder's name.

    >>> source_name(Path("/web/birds.jsonl.gz")), source_name(Path("/birds/train-0-of-2.parquet"))
    ('birds', 'birds')
    """
    path = file.resolve() if isinstance(file, Path) else file
    names = [each.name for each in _parents(path)]
    if path.suffix != ".html":  # each page is a file of its own
        names.insert(0, _EXTENSION.sub("", path.name))
    names = [_PART_NUMBER.sub("", name) for name in names]
    return next((name for name in names if name and not _GENERIC_NAME.fullmatch(name)), "documents")


def _parents(path: AnyPath) -> Iterator[AnyPath]:
    while path.parent != path and path.parent.name:
        path = path.parent
        yield path


_EXTENSION = re.compile(r"\.(jsonl(\.gz|\.zst)?|parquet|tar|html|csv|arrow)$")
_PART_NUMBER = re.compile(r"-\d+-of-\d+$")
_GENERIC_NAME = re.compile(r"\d+|data|train|test|val|valid|validation|dev|metadata|default|index")


def find_files(path: AnyPath | str) -> list[tuple[AnyPath, FileReader]]:
    """Return the files and saved datasets of a path, each with its reader, in order.

    Raises:
        DocumentError: nothing is found, or nothing with a known reader.
    """
    given = parse_path(path)
    reader = _find_reader(given)
    try:
        if isinstance(given, RemotePath) and ("*" in str(given) or "[" in str(given)):
            return _document_files(str(given), given.expand_glob())
        # Web servers may report files as folders too: a known suffix decides first.
        if isinstance(given, RemotePath) and reader is not None:
            return [(given, reader)]
        if given.is_dir():
            return _folder_files(given)
        if given.exists():
            return [(given, _require_reader(given, reader))]
    except OSError as error:
        raise DocumentError(
            f"{path}: cannot be opened ({os_error_text(error)}); expected document files. Fix the "
            "path or its permissions."
        ) from error
    matches: list[AnyPath] = []
    if isinstance(given, Path) and glob.has_magic(str(path)):
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 -- takes absolute patterns
        matches = [Path(match) for match in sorted(found)]
    return _document_files(str(path), matches)


def _require_reader(path: AnyPath, reader: FileReader | None) -> FileReader:
    if reader is None:
        raise DocumentError(
            f"{path}: no reader for this file extension; expected {_EXPECTED}. Convert or rename the file."
        )
    return reader


def _find_reader(path: AnyPath) -> FileReader | None:
    if path.name == "metadata.csv":
        return read_metadata_csv
    return next((read for suffix, read in READERS.items() if path.name.endswith(suffix)), None)


def _folder_files(folder: AnyPath) -> list[tuple[AnyPath, FileReader]]:
    files = list(_walk(folder))
    if not files and any(image_files(folder)):
        return [(folder, read_image_folder)]
    if not files:
        raise DocumentError(
            f"{folder}: no documents in this folder; expected {_EXPECTED}. Name the folder that holds the documents."
        )
    return files


def _walk(folder: AnyPath) -> Iterator[tuple[AnyPath, FileReader]]:
    entries = list_dir(folder)
    if is_saved_dataset({path.name for path, _ in entries}):
        yield folder, read_saved_dataset
        return
    for path, is_folder in entries:
        if is_folder:
            yield from _walk(path)
        elif reader := _find_reader(path):
            yield path, reader


def _document_files(pattern: str, matches: Sequence[AnyPath]) -> list[tuple[AnyPath, FileReader]]:
    """Return the document files among the matches of a glob."""
    files: dict[AnyPath, FileReader] = {}
    for match in matches:
        reader = _find_reader(match)
        if isinstance(match, Path) and match.is_dir():
            files.update(_walk(match))
        elif reader is not None:
            files[match] = reader
    if not files:
        found = f"{len(matches)} matches, none with documents" if matches else "nothing found"
        raise DocumentError(f"{pattern}: {found}; expected {_EXPECTED}. Fix the path, and put a glob in quotes.")
    return list(files.items())
