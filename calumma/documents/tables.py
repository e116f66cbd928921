"""Documents from tables: Parquet files, and folders that `datasets.save_to_disk` wrote.

A row is a document in one of two shapes: the columns `content` or `messages` hold lists of parts
(the schema of `writers`), or flat columns hold one part each: a struct of `bytes` and `path` is an
image (the `Image` feature of Hugging Face datasets), a list of such structs several, a column of
`TEXT_COLUMNS` is text, in the order in which the columns stand. Other columns that hold a plain
value become attributes. Where lists of parts and image columns stand together, the images fill the
parts `{"type": "image"}` that hold none, in order. Lists `texts` and `images` side by side are a
page; see `interleaved`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document, document_from_json
from calumma.documents.faults import OnError, reason, stop
from calumma.documents.interleaved import IMAGES, TEXTS, is_interleaved, parts_of
from calumma.errors import DocumentError, FileError
from calumma.files import read_json

TEXT_COLUMNS = ("text", "caption", "captions", "title", "description", "prompt", "alt")
"""Names of flat columns that are text of the document; others are attributes."""

ROWS_AT_ONCE = 64
"""Rows decoded together: enough to be quick, few enough that their pictures fit in memory."""

_FIELDS = ("id", "source", "licence")
_SHAPED = ("content", "messages")


def read_parquet(
    path: Path, on_error: OnError = stop, *, first: int = 0, count: int | None = None
) -> Iterator[Document]:
    """Read the documents of one Parquet file.

    Args:
        path: the file.
        on_error: what is done about a row that is no document.
        first: the row to begin with; row groups before it are not read.
        count: how many rows; None for all that follow.

    Raises:
        DocumentError: the file is not whole, or a row is no document.
    """
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(file.schema_arrow, path)
            end = file.metadata.num_rows if count is None else first + count
            groups, number = _row_groups(file.metadata, first, end)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups):
                wanted = range(max(first, number), min(end, number + batch.num_rows))
                if len(wanted):
                    part = batch.slice(wanted.start - number, len(wanted))
                    yield from _documents(part, path, wanted.start, on_error)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        on_error(_broken(path, "a Parquet file", error))


def _row_groups(metadata: pq.FileMetaData, first: int, end: int) -> tuple[list[int], int]:
    """The row groups that hold rows from `first` to before `end`, and the number of their first."""
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    groups = [g for g in range(len(starts) - 1) if starts[g] < end and starts[g + 1] > first]
    return groups, starts[groups[0]] if groups else 0


def read_saved_dataset(folder: Path, on_error: OnError = stop) -> Iterator[Document]:
    """Read a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DocumentError: a file of the folder is missing or not whole, or a row is no document.
    """
    splits = folder / "dataset_dict.json"
    try:
        if splits.exists():
            for split in map(str, read_json(splits)["splits"]):
                for document in read_saved_dataset(folder / split, on_error):
                    attributes = {"split": split, **document.attributes}
                    yield dataclasses.replace(document, attributes=attributes)
            return
        files = [
            folder / Path(f["filename"]).name
            for f in read_json(folder / "state.json")["_data_files"]
        ]
    except (OSError, FileError, KeyError, TypeError) as error:
        on_error(_broken(folder, "a folder of save_to_disk", error))
        return
    for file in files:
        yield from _read_arrow(file, on_error)


def is_saved_dataset(folder: Path) -> bool:
    """Whether the folder is one that `save_to_disk` wrote."""
    return (folder / "dataset_dict.json").exists() or (
        (folder / "state.json").exists() and (folder / "dataset_info.json").exists()
    )


def _read_arrow(path: Path, on_error: OnError) -> Iterator[Document]:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            _require_columns(reader.schema, path)
            number = 0
            for batch in reader:
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    piece = batch.slice(start, ROWS_AT_ONCE)
                    yield from _documents(piece, path, number + start, on_error)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        on_error(_broken(path, "an Arrow file", error))


def _broken(path: Path, kind: str, error: Exception) -> DocumentError:
    if isinstance(error, OSError) and error.errno is not None:
        return DocumentError(
            f"{path}: cannot be read ({reason(error)}); wanted {kind}. Mend the path or its "
            "permissions."
        )
    return DocumentError(
        f"{path}: cut short or broken; wanted {kind}, as it was written. Copy or write it again."
    )


def _require_columns(schema: pa.Schema, path: Path) -> None:
    known = {*TEXT_COLUMNS, *_SHAPED}
    if {TEXTS, IMAGES} <= set(schema.names):
        return
    if not any(_is_image(column.type) or column.name in known for column in schema):
        raise DocumentError(
            f"{path}: the columns are {', '.join(schema.names)}; wanted content or messages, an "
            f"image column (struct of bytes and path), or one of {', '.join(TEXT_COLUMNS)}. "
            "Rename the column that holds the text."
        )


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind)) and {f.name for f in kind} == {"bytes", "path"}


def _documents(
    batch: pa.RecordBatch, path: Path, first: int, on_error: OnError
) -> Iterator[Document]:
    image_columns = [f.name for f in batch.schema if _is_image(f.type)]
    # All saved datasets name their files alike, so there the folder is needed to tell rows apart.
    label = f"{path.parent.name}/{path.name}" if path.suffix == ".arrow" else path.name
    for offset, row in enumerate(batch.to_pylist()):
        where = f"{path}, row {first + offset}"
        try:
            if is_interleaved(row):
                parts = parts_of(row.pop(TEXTS), row.pop(IMAGES), where)
                made = {**_record(row, []), "content": parts}
            else:
                made = _record(row, image_columns)
            record = {"id": f"{label}, row {first + offset}"} | made
            yield document_from_json(record, path.parent, where)
        except DocumentError as error:
            on_error(error)


def _record(row: dict[str, Any], image_columns: list[str]) -> dict[str, Any]:
    """The JSON shape of a row."""
    record = {name: row[name] for name in _FIELDS if row.get(name) is not None}
    shaped = {name: row[name] for name in _SHAPED if row.get(name) is not None}
    if shaped:
        images = iter([part for name in image_columns for part in _images(row[name])])
        record.update({name: _filled(value, images) for name, value in shaped.items()})
        record["attributes"] = dict(row.get("attributes") or {})
        return record
    parts: list[dict[str, Any]] = []
    attributes: dict[str, str] = {}
    for name, value in row.items():
        if value is None or name in _FIELDS:
            continue
        if name in image_columns:
            parts.extend(_images(value))
        elif name in TEXT_COLUMNS:
            texts = [value] if isinstance(value, str) else value
            parts.extend({"type": "text", "text": text} for text in texts)
        elif isinstance(value, str | int | float):
            attributes[name] = str(value)
    record.update(content=parts, attributes=attributes)
    return record


def _images(value: Any) -> list[dict[str, Any]]:
    """The parts of an image column's value: one struct, a list of them, or null."""
    structs = value if isinstance(value, list) else [value]
    return [{"type": "image", **struct} for struct in structs if struct is not None]


def _filled(value: Any, images: Iterator[dict[str, Any]]) -> Any:
    """Lists of parts or turns, with images put into the image parts that hold none."""
    if isinstance(value, list):
        return [_filled(item, images) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "image" and value.get("bytes") is None and not value.get("path"):
        return next(images, value)
    return {key: _filled(item, images) for key, item in value.items()}
