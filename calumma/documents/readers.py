"""Reading documents from files, one at a time, whatever the files are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from calumma.documents.document import Document
from calumma.documents.faults import OnError, stop
from calumma.documents.tables import read_parquet


def read_documents(paths: Sequence[Path | str], on_error: OnError = stop) -> Iterator[Document]:
    """Read the documents of Parquet files, in the order given."""
    for path in paths:
        yield from read_parquet(Path(path), on_error)
