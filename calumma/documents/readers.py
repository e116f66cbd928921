"""Reading documents one at a time, whatever holds them: the one door into the road.

A path is a file, a folder, or a glob. A folder and a glob stand for all files of documents in
them, in the order of their names, so the same paths give the same documents in the same order. A
folder that holds pictures and no documents stands for its pictures.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from calumma.documents.document import Document
from calumma.documents.faults import Faults, OnError, stop
from calumma.documents.html import read_html
from calumma.documents.lines import read_lines
from calumma.documents.picture_folder import picture_files, read_pictures
from calumma.documents.tables import is_saved_dataset, read_parquet, read_saved_dataset
from calumma.documents.webdataset import read_tar
from calumma.errors import CalummaError, DocumentError

Reader = Callable[[Path, OnError], Iterator[Document]]

READERS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".jsonl.gz": read_lines,
    ".jsonl.zst": read_lines,
    ".parquet": read_parquet,
    ".tar": read_tar,
    ".html": read_html,
}
"""Who reads a file, by the end of its name."""

_WANTED = f"{', '.join(READERS)} or a folder written by save_to_disk"


def read_documents(paths: Sequence[Path | str], on_error: OnError = stop) -> Iterator[Document]:
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
                f"{path}: read to the end, and no document was in it; wanted at least one. Name "
                "another path, or leave this one out."
            )


def find_sources(path: Path | str) -> list[tuple[Path, Reader]]:
    """The files and saved datasets that a path stands for, each with its reader, in order.

    Raises:
        DocumentError: there is nothing, or nothing that a reader is known for.
    """
    given = Path(path)
    if given.is_dir():
        sources = list(_in_folder(given))
        if not sources and picture_files(given):
            return [(given, read_pictures)]
        if not sources:
            raise DocumentError(
                f"{given}: no documents in this folder; wanted {_WANTED}. Name the folder that "
                "holds the documents."
            )
        return sources
    if given.exists():
        reader = _reader(given)
        if reader is None:
            raise DocumentError(
                f"{given}: not known what a file with this ending holds; wanted {_WANTED}. Convert "
                "or rename the file."
            )
        return [(given, reader)]
    return _in_glob(str(path))


def _reader(path: Path) -> Reader | None:
    return next((read for suffix, read in READERS.items() if path.name.endswith(suffix)), None)


def _in_folder(folder: Path) -> Iterator[tuple[Path, Reader]]:
    if is_saved_dataset(folder):
        yield folder, read_saved_dataset
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _in_folder(path)
        elif reader := _reader(path):
            yield path, reader


def _in_glob(pattern: str) -> list[tuple[Path, Reader]]:
    matches = []
    if glob.has_magic(pattern):
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- takes absolute ones
    sources = [
        source
        for match in map(Path, matches)
        for source in (_in_folder(match) if match.is_dir() else [(match, _reader(match))])
    ]
    known = [(path, reader) for path, reader in sources if reader is not None]
    if not known:
        found = f"{len(matches)} matches, none with documents" if matches else "nothing is there"
        raise DocumentError(
            f"{pattern}: {found}; wanted {_WANTED}. Mend the path, and put a glob in quotes."
        )
    return list(dict.fromkeys(known))
