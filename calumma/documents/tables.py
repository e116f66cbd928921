"""Documents from tables: Parquet files, and folders that `datasets.save_to_disk` wrote.

A row is a document in one of two shapes: the columns `content` or `messages` hold lists of parts
(the schema of `writers`), or flat columns hold one part each: a struct of `bytes` and `path` is an
image (the `Image` feature of Hugging Face datasets), a column of `TEXT_COLUMNS` is text, in the
order in which the columns stand. Other columns that hold a plain value become attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document, document_from_json
from calumma.documents.faults import OnError, stop
from calumma.errors import DocumentError
from calumma.files import read_json

TEXT_COLUMNS = ("text", "caption", "captions", "title", "description", "prompt", "alt")
"""Names of flat columns that are text of the document; others are attributes."""

ROWS_AT_ONCE = 64
"""Rows decoded together: enough to be quick, few enough that their pictures fit in memory."""

_FIELDS = ("id", "source", "licence")


def read_parquet(path: Path, on_error: OnError = stop) -> Iterator[Document]:
    """Read the documents of one Parquet file.

    Raises:
        DocumentError: the file is not whole, or a row is no document.
    """
    where = f"{path}"
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(file.schema_arrow, where)
            number = 0
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from _documents(batch, path, number, on_error)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        on_error(_broken(path, "Parquet file", error))


def read_saved_dataset(folder: Path, on_error: OnError = stop) -> Iterator[Document]:
    """Read a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DocumentError: a file of the folder is missing or not whole, or a row is no document.
    """
    splits = folder / "dataset_dict.json"
    if splits.exists():
        for split in read_json(splits)["splits"]:
            yield from read_saved_dataset(folder / split, on_error)
        return
    for data_file in read_json(folder / "state.json")["_data_files"]:
        yield from _read_arrow(folder / data_file["filename"], on_error)


def is_saved_dataset(folder: Path) -> bool:
    """Whether the folder is one that `save_to_disk` wrote."""
    return (folder / "dataset_dict.json").exists() or (
        (folder / "state.json").exists() and (folder / "dataset_info.json").exists()
    )


def _read_arrow(path: Path, on_error: OnError) -> Iterator[Document]:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            _require_columns(reader.schema, f"{path}")
            number = 0
            for batch in reader:
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    piece = batch.slice(start, ROWS_AT_ONCE)
                    yield from _documents(piece, path, number + start, on_error)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        on_error(_broken(path, "Arrow file", error))


def _broken(path: Path, kind: str, error: Exception) -> DocumentError:
    if isinstance(error, OSError) and error.strerror:
        return DocumentError(
            f"{path}: cannot be read ({error.strerror}); wanted a {kind}. Mend the path or its "
            "permissions."
        )
    return DocumentError(
        f"{path}: no whole {kind}, its data is cut short or broken; wanted it as it was written. "
        "Copy or write the file again."
    )


def _require_columns(schema: pa.Schema, where: str) -> None:
    flat = [f.name for f in schema if _is_image(f.type) or f.name in TEXT_COLUMNS]
    if not flat and not {"content", "messages"} & set(schema.names):
        raise DocumentError(
            f"{where}: the columns are {', '.join(schema.names)}; wanted content or messages, an "
            f"image column (struct of bytes and path), or one of {', '.join(TEXT_COLUMNS)}. "
            "Rename the column that holds the text."
        )


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {f.name for f in kind} == {"bytes", "path"}


def _documents(
    batch: pa.RecordBatch, path: Path, first: int, on_error: OnError
) -> Iterator[Document]:
    images = {f.name for f in batch.schema if _is_image(f.type)}
    for offset, row in enumerate(batch.to_pylist()):
        where = f"{path}, row {first + offset}"
        try:
            yield document_from_json(_record(row, images), path.parent, where)
        except DocumentError as error:
            on_error(error)


def _record(row: dict[str, Any], images: set[str]) -> dict[str, Any]:
    """The JSON shape of a row."""
    record = {name: row[name] for name in _FIELDS if row.get(name) is not None}
    shaped = [name for name in ("content", "messages") if row.get(name) is not None]
    if shaped:
        record.update({name: row[name] for name in shaped})
        record["attributes"] = dict(row.get("attributes") or {})
        return record
    parts: list[dict[str, Any]] = []
    attributes: dict[str, str] = {}
    for name, value in row.items():
        if value is None or name in _FIELDS:
            continue
        if name in images:
            parts.append({"type": "image", **value})
        elif name in TEXT_COLUMNS:
            texts = [value] if isinstance(value, str) else value
            parts.extend({"type": "text", "text": text} for text in texts)
        elif isinstance(value, str | int | float):
            attributes[name] = str(value)
    record.update(content=parts, attributes=attributes)
    return record
