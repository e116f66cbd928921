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
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document, document_from_json
from calumma.documents.error_policy import OnError, stop, unreadable_file_error
from calumma.documents.obelics import IMAGES, TEXTS, interleave, is_obelics_record
from calumma.documents.paths import AnyPath, list_dir, open_arrow
from calumma.errors import DocumentError

TEXT_COLUMNS = ("text", "caption", "captions", "title", "description", "prompt", "alt")
"""Names of flat columns that are text of the document; others are attributes."""

ROWS_AT_ONCE = 64
"""Rows decoded together: enough to be quick, few enough that their pictures fit in memory."""

_FIELDS = ("id", "source", "licence")
_SHAPED = ("content", "messages")


def read_parquet(
    path: AnyPath, on_error: OnError = stop, *, first: int = 0, count: int | None = None
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
        with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
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
        on_error(_corrupt_file_error(path, "a Parquet file", error))


def _row_groups(metadata: pq.FileMetaData, first: int, end: int) -> tuple[list[int], int]:
    """The row groups that hold rows from `first` to before `end`, and the number of their first."""
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    groups = [g for g in range(len(starts) - 1) if starts[g] < end and starts[g + 1] > first]
    return groups, starts[groups[0]] if groups else 0


def read_saved_dataset(folder: AnyPath, on_error: OnError = stop) -> Iterator[Document]:
    """Read a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DocumentError: a file of the folder is missing or not whole, or a row is no document.
    """
    for file, split in arrow_files(folder, on_error):
        yield from read_arrow(file, on_error, split=split)


def arrow_files(folder: AnyPath, on_error: OnError = stop) -> list[tuple[AnyPath, str]]:
    """The Arrow files of a saved dataset in order, each with the name of its split, "" if none.

    Raises:
        DocumentError: the folder's own files cannot be read.
    """
    try:
        if "dataset_dict.json" in {found.name for found, _ in list_dir(folder)}:
            splits = list(map(str, _json(folder / "dataset_dict.json")["splits"]))
        else:
            splits = [""]
        return [
            (inside / file["filename"].rpartition("/")[2], split)
            for split in splits
            for inside in [folder / split if split else folder]
            for file in _json(inside / "state.json")["_data_files"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        on_error(_corrupt_file_error(folder, "a folder of save_to_disk", error))
        return []


def _json(path: AnyPath) -> Any:
    return json.loads(path.read_bytes())


def is_saved_dataset(names: Collection[str]) -> bool:
    """Whether a folder that holds these names is one that `save_to_disk` wrote."""
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= set(names)


def read_arrow(
    path: AnyPath,
    on_error: OnError = stop,
    *,
    first: int = 0,
    count: int | None = None,
    split: str = "",
) -> Iterator[Document]:
    """Read the documents of one Arrow file of a saved dataset.

    Args:
        path: the file.
        on_error: what is done about a row that is no document.
        first: the row to begin with; of a file of this machine, rows before it are not read.
        count: how many rows; None for all that follow.
        split: becomes an attribute, unless it is empty.

    Raises:
        DocumentError: the file is not whole, or a row is no document.
    """
    try:
        with open_arrow(path, mapped=True) as file, pa.ipc.open_stream(file) as reader:
            _require_columns(reader.schema, path)
            number, end = 0, None if count is None else first + count
            for batch in reader:
                last = number + batch.num_rows if end is None else min(end, number + batch.num_rows)
                for start in range(max(first, number), last, ROWS_AT_ONCE):
                    piece = batch.slice(start - number, min(ROWS_AT_ONCE, last - start))
                    for document in _documents(piece, path, start, on_error):
                        yield _with_split(document, split)
                number += batch.num_rows
                if end is not None and number >= end:
                    return
    except (pa.ArrowException, OSError) as error:
        on_error(_corrupt_file_error(path, "an Arrow file", error))


def _with_split(document: Document, split: str) -> Document:
    if not split:
        return document
    return dataclasses.replace(document, attributes={"split": split, **document.attributes})


def num_arrow_rows(path: Path) -> int:
    """How many rows an Arrow file of this machine has; no column is read.

    Raises:
        pa.ArrowException, OSError: it is not whole.
    """
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return sum(batch.num_rows for batch in reader)


def _corrupt_file_error(path: AnyPath, kind: str, error: Exception) -> DocumentError:
    """What is said of a file that is there and not whole; raises where it is not handed out."""
    if isinstance(error, OSError) and error.errno is not None:
        raise unreadable_file_error(path, error, kind) from error
    return DocumentError(
        f"{path}: cut short or broken; expected {kind}, as it was written. Copy or write it again."
    )


def _require_columns(schema: pa.Schema, path: AnyPath) -> None:
    known = {*TEXT_COLUMNS, *_SHAPED}
    if {TEXTS, IMAGES} <= set(schema.names):
        return
    if not any(_is_image(column.type) or column.name in known for column in schema):
        raise DocumentError(
            f"{path}: the columns are {', '.join(schema.names)}; expected content or messages, an "
            f"image column (struct of bytes and path), or one of {', '.join(TEXT_COLUMNS)}. "
            "Rename the column that holds the text."
        )


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind)) and {f.name for f in kind} == {"bytes", "path"}


def _documents(
    batch: pa.RecordBatch, path: AnyPath, first: int, on_error: OnError
) -> Iterator[Document]:
    image_columns = [f.name for f in batch.schema if _is_image(f.type)]
    # All saved datasets name their files alike, so there the folder is needed to tell rows apart.
    label = f"{path.parent.name}/{path.name}" if path.suffix == ".arrow" else path.name
    for offset, row in enumerate(batch.to_pylist()):
        where = f"{path}, row {first + offset}"
        try:
            if is_obelics_record(row):
                parts = interleave(row.pop(TEXTS), row.pop(IMAGES), where)
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
        record.update({name: _fill_images(value, images) for name, value in shaped.items()})
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


def _fill_images(value: Any, images: Iterator[dict[str, Any]]) -> Any:
    """Lists of parts or turns, with images put into the image parts that hold none."""
    if isinstance(value, list):
        return [_fill_images(item, images) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "image" and value.get("bytes") is None and not value.get("path"):
        return next(images, value)
    return {key: _fill_images(item, images) for key, item in value.items()}
