"""Readers of tables: Parquet files, and folders written by `datasets.save_to_disk` (Arrow files).

A row is a record; `record` converts it to a document.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument, OnError, drop_or_raise, unreadable_file_error
from calumma.documents.paths import AnyPath, list_dir, open_arrow
from calumma.documents.record import document_from_record, is_known_column
from calumma.documents.record_columns import TEXT_COLUMNS
from calumma.errors import DocumentError

ROWS_PER_BATCH = 64
"""Rows decoded together: enough for speed, few enough that their images fit in memory."""


class CorruptFileError(DocumentError):
    """A file that was opened, and is truncated or corrupt; it is dropped like a bad document."""


def read_parquet(
    path: AnyPath,
    on_error: OnError = "raise",
    ignored: Collection[str] = (),
    *,
    first: int = 0,
    count: int | None = None,
) -> Iterator[Document | DroppedDocument]:
    """Read the documents of one Parquet file.

    Args:
        path: the file.
        on_error: what to do at a row that is no document.
        ignored: columns that are not read.
        first: the first row to read; row groups before it are skipped.
        count: number of rows to read; None for all.

    Raises:
        DocumentError: the file cannot be read; under "raise" also a corrupt file or a bad row.
    """
    try:
        with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
            _require_columns(file.schema_arrow, path)
            end = file.metadata.num_rows if count is None else first + count
            groups, number = _row_groups(file.metadata, first, end)
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=groups):
                rows = range(max(first, number), min(end, number + batch.num_rows))
                if len(rows):
                    part = batch.slice(rows.start - number, len(rows))
                    yield from _documents(part, path, rows.start, on_error, ignored)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        yield drop_or_raise(_corrupt_file_error(path, "a Parquet file", error), on_error)


def _row_groups(metadata: pq.FileMetaData, first: int, end: int) -> tuple[list[int], int]:
    """Return the row groups that overlap [first, end), and the first row of the first group."""
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    groups = [g for g in range(len(starts) - 1) if starts[g] < end and starts[g + 1] > first]
    return groups, starts[groups[0]] if groups else 0


def read_saved_dataset(
    folder: AnyPath, on_error: OnError = "raise", ignored: Collection[str] = ()
) -> Iterator[Document | DroppedDocument]:
    """Read a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DocumentError: a file cannot be read; under "raise" also a corrupt file or a bad row.
    """
    try:
        files = arrow_files(folder)
    except CorruptFileError as error:
        yield drop_or_raise(error, on_error)
        return
    for file, split in files:
        yield from read_arrow(file, on_error, ignored, split=split)


def arrow_files(folder: AnyPath) -> list[tuple[AnyPath, str]]:
    """Return the Arrow files of a saved dataset in order, each with its split, "" if none.

    Raises:
        CorruptFileError: the index files of the folder are corrupt or incomplete.
        DocumentError: the index files cannot be read.
    """
    try:
        if "dataset_dict.json" in {found.name for found, _ in list_dir(folder)}:
            splits = list(map(str, _load_json(folder / "dataset_dict.json")["splits"]))
        else:
            splits = [""]
        return [
            (inside / file["filename"].rpartition("/")[2], split)
            for split in splits
            for inside in [folder / split if split else folder]
            for file in _load_json(inside / "state.json")["_data_files"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt_file_error(folder, "a folder of save_to_disk", error) from error


def _load_json(path: AnyPath) -> Any:
    return json.loads(path.read_bytes())


def is_saved_dataset(names: Collection[str]) -> bool:
    """Return whether a folder with these entries was written by `save_to_disk`."""
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= set(names)


def read_arrow(
    path: AnyPath,
    on_error: OnError = "raise",
    ignored: Collection[str] = (),
    *,
    first: int = 0,
    count: int | None = None,
    split: str = "",
) -> Iterator[Document | DroppedDocument]:
    """Read the documents of one Arrow file of a saved dataset; see `read_parquet`.

    The name of the dataset split becomes an attribute, unless it is empty.
    """
    try:
        with open_arrow(path, mapped=True) as file, pa.ipc.open_stream(file) as reader:
            _require_columns(reader.schema, path)
            number, end = 0, None if count is None else first + count
            for batch in reader:
                last = number + batch.num_rows if end is None else min(end, number + batch.num_rows)
                for start in range(max(first, number), last, ROWS_PER_BATCH):
                    rows = batch.slice(start - number, min(ROWS_PER_BATCH, last - start))
                    for document in _documents(rows, path, start, on_error, ignored):
                        yield _with_split(document, split)
                number += batch.num_rows
                if end is not None and number >= end:
                    return
    except (pa.ArrowException, OSError) as error:
        yield drop_or_raise(_corrupt_file_error(path, "an Arrow file", error), on_error)


def _with_split(document: Document | DroppedDocument, split: str) -> Document | DroppedDocument:
    if not split or isinstance(document, DroppedDocument):
        return document
    return dataclasses.replace(document, attributes={"split": split, **document.attributes})


def num_arrow_rows(path: Path) -> int:
    """Count the rows of a local Arrow file; no column is read.

    Raises:
        pa.ArrowException, OSError: the file is corrupt or cannot be read.
    """
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return sum(batch.num_rows for batch in reader)


def _corrupt_file_error(path: AnyPath, kind: str, error: Exception) -> CorruptFileError:
    """Return the error for a corrupt file; raise another if the file could not be opened at all."""
    if isinstance(error, OSError) and error.errno is not None:
        raise unreadable_file_error(path, error, kind) from error
    return CorruptFileError(
        f"{path}: truncated or corrupt; expected {kind}, as it was written. Copy or write it again."
    )


def _require_columns(schema: pa.Schema, path: AnyPath) -> None:
    """Refuse a table without a known column and without bytes, before any row is read."""
    if not any(map(is_known_column, schema.names)) and not any(_holds_bytes(column.type) for column in schema):
        raise DocumentError(
            f"{path}: the columns are {', '.join(schema.names)}; expected content or messages, an image column "
            f"(struct of bytes and path), or one of {', '.join(TEXT_COLUMNS)}. Rename the column that holds the text."
        )


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a type is binary, or has a binary inside; images may be in it."""
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    if hasattr(kind, "value_type"):
        return _holds_bytes(kind.value_type)
    return "binary" in str(kind)


def _documents(
    batch: pa.RecordBatch, path: AnyPath, first: int, on_error: OnError, ignored: Collection[str]
) -> Iterator[Document | DroppedDocument]:
    # All saved datasets use the same file names; the folder makes the ids unique.
    label = f"{path.parent.name}/{path.name}" if path.suffix == ".arrow" else path.name
    try:
        rows: list[dict[str, Any] | None] = batch.to_pylist()
    except Exception:  # a value that Python has no type for: find its row and column
        rows = [None] * batch.num_rows
    for offset, row in enumerate(rows):
        where = f"{path}, row {first + offset}"
        try:
            if row is None:
                row = _convert_row(batch.slice(offset, 1), where)
            default_id = f"{label}, row {first + offset}"
            yield document_from_record(row, path.parent, where, default_id=default_id, ignored=ignored)
        except DocumentError as error:
            yield drop_or_raise(error, on_error)


def _convert_row(row: pa.RecordBatch, where: str) -> dict[str, Any]:
    """Convert the values of one row; plain values without a type in Python become strings.

    Raises:
        DocumentError: a value cannot be converted, such as a string that is not UTF-8.
    """
    values: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except Exception as error:
            if pa.types.is_temporal(column.type):
                values[name] = str(column.cast(pa.int64())[0])
                continue
            reason = " ".join(str(error).split())
            raise DocumentError(
                f"{where}, column {name!r}: a value of {column.type} cannot be read ({reason}); expected text, bytes "
                "or numbers. Convert the column, or drop the document."
            ) from error
    return values
