"""Splits of document files: numbered ranges that can be read independently, for parallel tasks.

The splits depend only on the files and on the size, so the work comes out the same on any number of
workers. Parquet files are split at any row, local or remote; of local files, plain JSON lines at
any line, tar files between documents, saved datasets at any row. Files that can only be read from
the start (compressed lines) or would have to be fetched twice (other remote files) are one split
each.
"""

import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument, OnError
from calumma.documents.jsonl import read_jsonl
from calumma.documents.parquet import (
    CorruptFileError,
    arrow_files,
    num_arrow_rows,
    read_arrow,
    read_parquet,
    read_saved_dataset,
)
from calumma.documents.paths import AnyPath, open_arrow
from calumma.documents.readers import find_files, with_source
from calumma.documents.webdataset import ScatteredSampleError, read_tar, tar_offsets
from calumma.errors import DocumentError


@dataclass(frozen=True, kw_only=True)
class FileSplit:
    """A range of the documents of one file."""

    path: AnyPath

    first: int = 0
    """Index of the first row, document or line."""

    count: int | None = None
    """Number of rows, documents or lines; None for all to the end of the file."""

    offset: int = 0
    """Offset in bytes of the first line, or of the first document of a tar file."""

    dataset_split: str = ""
    """Name of the dataset split of a saved dataset's file, such as "train"."""


def split_files(paths: Sequence[Path | str], size: int) -> Iterator[FileSplit]:
    """Yield the splits of files, folders and globs, in the order of `read_documents`.

    Args:
        paths: as in `read_documents`.
        size: maximum number of rows, documents or lines in a split of a file that can be split.

    Raises:
        DocumentError: a path holds no document files.
    """
    for path in paths:
        for file, reader in find_files(path):
            if reader is read_saved_dataset:
                yield from _dataset_splits(file, size)
            else:
                yield from _splits(file, size)


def _dataset_splits(folder: AnyPath, size: int) -> Iterator[FileSplit]:
    try:
        files = arrow_files(folder)
    except CorruptFileError:
        yield FileSplit(path=folder)  # reading this split raises the error again
        return
    for path, dataset_split in files:
        rows = None
        if isinstance(path, Path):
            with suppress(pa.ArrowException, OSError):
                rows = num_arrow_rows(path)
        for split in _row_splits(path, rows, size):
            yield replace(split, dataset_split=dataset_split)


def _row_splits(path: AnyPath, rows: int | None, size: int) -> list[FileSplit]:
    if rows is None:
        return [FileSplit(path=path)]
    return [FileSplit(path=path, first=n, count=min(size, rows - n)) for n in range(0, rows, size)]


def _splits(path: AnyPath, size: int) -> Iterator[FileSplit]:
    try:
        if path.suffix == ".parquet":
            with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
                rows = file.metadata.num_rows
            yield from _row_splits(path, rows, size)
            return
        if isinstance(path, Path) and path.suffix == ".tar":
            offsets = tar_offsets(path)
            for first in range(0, len(offsets), size):
                count = min(size, len(offsets) - first)
                yield FileSplit(path=path, first=first, count=count, offset=offsets[first])
            if offsets:
                return
        if isinstance(path, Path) and path.suffix == ".jsonl":
            yield from _line_splits(path, size)
            return
    except (pa.ArrowException, tarfile.TarError, ScatteredSampleError, OSError):
        pass  # reading the split raises a message about the file
    yield FileSplit(path=path)


def _line_splits(path: Path, size: int) -> Iterator[FileSplit]:
    first = offset = end = number = 0
    with path.open("rb") as file:
        for line in file:
            number, end = number + 1, end + len(line)
            if number - first == size:
                yield FileSplit(path=path, first=first, count=size, offset=offset)
                first, offset = number, end
    if number > first:
        yield FileSplit(path=path, first=first, count=number - first, offset=offset)


def read_split(
    split: FileSplit, on_error: OnError = "raise", ignored: Collection[str] = ()
) -> Iterator[Document | DroppedDocument]:
    """Read the documents of one split; all splits in order give those of `read_documents`.

    Raises:
        DocumentError: a file cannot be read; under "raise" also a document.
    """
    path, first, count = split.path, split.first, split.count
    read: Iterator[Document | DroppedDocument]
    if path.suffix == ".arrow":
        read = read_arrow(path, on_error, ignored, first=first, count=count, split=split.dataset_split)
    elif count is not None and path.suffix == ".parquet":
        read = read_parquet(path, on_error, ignored, first=first, count=count)
    elif count is not None and path.suffix == ".tar":
        read = read_tar(path, on_error, ignored, offset=split.offset, count=count)
    elif count is not None:
        read = read_jsonl(path, on_error, ignored, offset=split.offset, first_line=first, count=count)
    else:
        for file, reader in find_files(path):
            yield from with_source(reader(file, on_error, ignored), file)
        return
    yield from with_source(read, path)


def require_documents(paths: Sequence[Path | str], num_found: int) -> None:
    """Raise an error if `num_found` is 0.

    Raises:
        DocumentError: no document was found in `paths`.
    """
    if not num_found:
        raise DocumentError(
            f"{', '.join(map(str, paths))}: no document found; expected at least one. Name another path."
        )
