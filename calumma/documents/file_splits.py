"""Files of documents cut into numbered spans, each of which can be read without those before it.

The numbers depend on the files and on the size alone, so work that is shared out by spans comes
out the same however many do it. Parquet files are cut anywhere, here or at an address; of this
machine's files, plain JSON lines at any line, tar files between documents, saved datasets at any
row. What can only be read from its start (compressed lines), and what would have to be fetched
twice (other files at an address), is one span a file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document
from calumma.documents.error_policy import OnError, stop
from calumma.documents.jsonl import read_jsonl
from calumma.documents.parquet import (
    arrow_files,
    num_arrow_rows,
    read_arrow,
    read_parquet,
    read_saved_dataset,
)
from calumma.documents.paths import AnyPath, open_arrow
from calumma.documents.readers import find_sources
from calumma.documents.webdataset import read_tar, tar_offsets
from calumma.errors import DocumentError


@dataclass(frozen=True, kw_only=True)
class Span:
    """Some of the documents of one file."""

    path: AnyPath

    first: int = 0
    """The first row or document, or the lines before the first, from 0."""

    count: int | None = None
    """Rows, documents or lines; None for all to the end of the file."""

    offset: int = 0
    """Bytes before the first line, or before the first document of a tar file."""

    split: str = ""
    """Of a file of a saved dataset: the name of its split."""


def cut_spans(paths: Sequence[Path | str], size: int) -> Iterator[Span]:
    """The spans of files, folders and globs, in the order in which `read_documents` reads them.

    Args:
        paths: as `read_documents` takes them.
        size: most rows, documents or lines in a span of a file that can be cut.

    Raises:
        DocumentError: a path holds no files of documents.
    """
    for path in paths:
        for source, reader in find_sources(path):
            if reader is read_saved_dataset:
                yield from _of_dataset(source, size)
            else:
                yield from _of_file(source, size)


def _of_dataset(folder: AnyPath, size: int) -> Iterator[Span]:
    broken: list[Exception] = []
    for path, split in arrow_files(folder, broken.append):
        rows = None
        if isinstance(path, Path):
            with suppress(pa.ArrowException, OSError):
                rows = num_arrow_rows(path)
        for span in _of_rows(path, rows, size):
            yield replace(span, split=split)
    if broken:
        yield Span(path=folder)


def _of_rows(path: AnyPath, rows: int | None, size: int) -> list[Span]:
    if rows is None:
        return [Span(path=path)]
    return [Span(path=path, first=n, count=min(size, rows - n)) for n in range(0, rows, size)]


def _of_file(path: AnyPath, size: int) -> Iterator[Span]:
    try:
        if path.suffix == ".parquet":
            with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
                rows = file.metadata.num_rows
            yield from _of_rows(path, rows, size)
            return
        if isinstance(path, Path) and path.suffix == ".tar":
            offsets = tar_offsets(path)
            for first in range(0, len(offsets), size):
                count = min(size, len(offsets) - first)
                yield Span(path=path, first=first, count=count, offset=offsets[first])
            if offsets:
                return
        if isinstance(path, Path) and path.suffix == ".jsonl":
            yield from _of_lines(path, size)
            return
    except (pa.ArrowException, tarfile.TarError, OSError):
        # Whoever reads the span tells what is wrong with the file.
        pass
    yield Span(path=path)


def _of_lines(path: Path, size: int) -> Iterator[Span]:
    first = offset = end = number = 0
    with path.open("rb") as file:
        for line in file:
            number, end = number + 1, end + len(line)
            if number - first == size:
                yield Span(path=path, first=first, count=size, offset=offset)
                first, offset = number, end
    if number > first:
        yield Span(path=path, first=first, count=number - first, offset=offset)


def read_span(span: Span, on_error: OnError = stop) -> Iterator[Document]:
    """The documents of one span; together, in order, the spans give what `read_documents` gives.

    Raises:
        DocumentError: a document cannot be read, and `on_error` does not return.
    """
    path, first, count = span.path, span.first, span.count
    if path.suffix == ".arrow":
        yield from read_arrow(path, on_error, first=first, count=count, split=span.split)
    elif count is not None and path.suffix == ".parquet":
        yield from read_parquet(path, on_error, first=first, count=count)
    elif count is not None and path.suffix == ".tar":
        yield from read_tar(path, on_error, offset=span.offset, count=count)
    elif count is not None:
        yield from read_jsonl(path, on_error, place=(span.offset, first, count))
    else:
        for source, reader in find_sources(path):
            yield from reader(source, on_error)


def require_documents(paths: Sequence[Path | str], num_found: int) -> None:
    """Refuse files in which not one document was found.

    Raises:
        DocumentError: `num_found` is 0.
    """
    if not num_found:
        raise DocumentError(
            f"{', '.join(map(str, paths))}: read to the end, and no document was in it; expected at "
            "least one. Name another path."
        )
