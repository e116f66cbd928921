"""Reading documents one at a time, whatever holds them: the one door into the road.

A path is a file, a folder, or a glob, of this machine or as an address that fsspec opens. A folder
and a glob stand for all files of documents in them, in the order of their names, so the same paths
give the same documents in the same order. A folder that holds pictures and no documents stands for
its pictures.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from calumma.documents.document import Document
from calumma.documents.error_policy import Faults, OnError, os_error_text, stop
from calumma.documents.html import read_html
from calumma.documents.image_folder import image_files, read_image_folder
from calumma.documents.jsonl import read_jsonl
from calumma.documents.parquet import is_saved_dataset, read_parquet, read_saved_dataset
from calumma.documents.paths import AnyPath, RemotePath, list_dir, parse_path
from calumma.documents.webdataset import read_tar
from calumma.errors import CalummaError, DocumentError

Reader = Callable[[AnyPath, OnError], Iterator[Document]]

READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".jsonl.zst": read_jsonl,
    ".parquet": read_parquet,
    ".tar": read_tar,
    ".html": read_html,
}
"""Who reads a file, by the end of its name."""

_WANTED = f"{', '.join(READERS)} or a folder written by save_to_disk"


def read_documents(paths: Sequence[AnyPath | str], on_error: OnError = stop) -> Iterator[Document]:
    """Read every document of files, folders and globs, in order, one in memory at a time.

    Args:
        paths: files, folders (searched to the bottom) or globs (`data/**/*.parquet`).
        on_error: what is done about a document that cannot be read; see `faults`.

    Raises:
        DocumentError: a path holds no documents; and, unless `on_error` returns, a file or a
            document in it cannot be read. An unreadable *picture* shows when it is opened.
    """
    for path in paths:
        num_found = 0
        faults = Faults(keep=0)

        def note(error: CalummaError, faults: Faults = faults) -> None:
            faults(error)
            on_error(error)

        for source, reader in find_sources(path):
            for document in reader(source, note):
                num_found += 1
                yield document
        if not num_found and not faults.count:
            raise DocumentError(
                f"{path}: read to the end, and no document was in it; expected at least one. Name "
                "another path, or leave this one out."
            )


def find_sources(path: AnyPath | str) -> list[tuple[AnyPath, Reader]]:
    """The files and saved datasets that a path stands for, each with its reader, in order.

    Raises:
        DocumentError: there is nothing, or nothing that a reader is known for.
    """
    given = parse_path(path)
    reader = _reader(given)
    try:
        if isinstance(given, RemotePath) and ("*" in str(given) or "[" in str(given)):
            return _known(str(given), given.expand_glob())
        # The files of web servers may be taken for folders as well: their names come first.
        if isinstance(given, RemotePath) and reader is not None:
            return [(given, reader)]
        if given.is_dir():
            return _of_folder(given)
        if given.exists():
            return [(given, _wanted(given, reader))]
    except OSError as error:
        raise DocumentError(
            f"{path}: cannot be looked into ({os_error_text(error)}); expected files of documents. Fix the "
            "path, or your right to read it."
        ) from error
    matches: list[AnyPath] = []
    if isinstance(given, Path) and glob.has_magic(str(path)):
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 -- takes absolute ones
        matches = [Path(match) for match in sorted(found)]
    return _known(str(path), matches)


def _wanted(path: AnyPath, reader: Reader | None) -> Reader:
    if reader is None:
        raise DocumentError(
            f"{path}: not known what a file with this ending holds; expected {_WANTED}. Convert "
            "or rename the file."
        )
    return reader


def _reader(path: AnyPath) -> Reader | None:
    return next((read for suffix, read in READERS.items() if path.name.endswith(suffix)), None)


def _of_folder(folder: AnyPath) -> list[tuple[AnyPath, Reader]]:
    sources = list(_in_folder(folder))
    if not sources and any(image_files(folder)):
        return [(folder, read_image_folder)]
    if not sources:
        raise DocumentError(
            f"{folder}: no documents in this folder; expected {_WANTED}. Name the folder that "
            "holds the documents."
        )
    return sources


def _in_folder(folder: AnyPath) -> Iterator[tuple[AnyPath, Reader]]:
    found = list_dir(folder)
    if is_saved_dataset({path.name for path, _ in found}):
        yield folder, read_saved_dataset
        return
    for path, is_folder in found:
        if is_folder:
            yield from _in_folder(path)
        elif reader := _reader(path):
            yield path, reader


def _known(pattern: str, matches: Sequence[AnyPath]) -> list[tuple[AnyPath, Reader]]:
    """The files of documents among what a glob matched."""
    known: dict[AnyPath, Reader] = {}
    for match in matches:
        reader = _reader(match)
        if isinstance(match, Path) and match.is_dir():
            known.update(_in_folder(match))
        elif reader is not None:
            known[match] = reader
    if not known:
        found = f"{len(matches)} matches, none with documents" if matches else "nothing is there"
        raise DocumentError(
            f"{pattern}: {found}; expected {_WANTED}. Fix the path, and put a glob in quotes."
        )
    return list(known.items())
