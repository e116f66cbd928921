"""Files of documents cut into numbered spans, each of which can be read without those before it.

The numbers depend on the files and on the size alone, so work that is shared out by spans comes
out the same however many do it. Parquet files and plain JSON lines are cut anywhere; what can only
be read from its start (compressed lines, tar, saved datasets) is one span a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document
from calumma.documents.faults import OnError, stop
from calumma.documents.lines import read_lines
from calumma.documents.readers import find_sources
from calumma.documents.tables import read_parquet
from calumma.errors import DocumentError


@dataclass(frozen=True, kw_only=True)
class Span:
    """Some of the documents of one file."""

    path: Path

    first: int = 0
    """The first row, or the lines before the first, from 0."""

    count: int | None = None
    """Rows or lines; None for all to the end of the file."""

    offset: int = 0
    """Bytes before the first line."""


def cut_spans(paths: Sequence[Path | str], size: int) -> list[Span]:
    """The spans of files, folders and globs, in the order in which `read_documents` reads them.

    Args:
        paths: as `read_documents` takes them.
        size: most rows or lines in a span of a file that can be cut.

    Raises:
        DocumentError: a path holds no files of documents.
    """
    spans: list[Span] = []
    for path in paths:
        for source, _ in find_sources(path):
            spans += _of_file(source, size)
    return spans


def _of_file(path: Path, size: int) -> list[Span]:
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                rows = file.metadata.num_rows
            firsts = range(0, rows, size)
            return [Span(path=path, first=n, count=min(size, rows - n)) for n in firsts]
        if path.suffix == ".jsonl":
            return list(_of_lines(path, size))
    except (pa.ArrowException, OSError):
        # Whoever reads the span tells what is wrong with the file.
        pass
    return [Span(path=path)]


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
    if span.count is not None and span.path.suffix == ".parquet":
        yield from read_parquet(span.path, on_error, first=span.first, count=span.count)
    elif span.count is not None:
        place = (span.offset, span.first, span.count)
        yield from read_lines(span.path, on_error, place=place)
    else:
        for path, reader in find_sources(span.path):
            yield from reader(path, on_error)


def require_documents(paths: Sequence[Path | str], num_found: int) -> None:
    """Refuse files in which not one document was found.

    Raises:
        DocumentError: `num_found` is 0.
    """
    if not num_found:
        raise DocumentError(
            f"{', '.join(map(str, paths))}: read to the end, and no document was in it; wanted at "
            "least one. Name another path."
        )
