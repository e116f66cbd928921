"""Documents from JSON lines, plain or compressed with gzip or Zstandard."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from calumma.documents.document import Document, document_from_json
from calumma.documents.error_policy import OnError, stop, unreadable_file_error
from calumma.documents.obelics import IMAGES, TEXTS, interleave, is_obelics_record
from calumma.documents.paths import AnyPath, open_arrow
from calumma.errors import DocumentError

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Codecs by the last suffix of a file's name."""


def read_jsonl(
    path: AnyPath, on_error: OnError = stop, *, place: tuple[int, int, int | None] = (0, 0, None)
) -> Iterator[Document]:
    """Read one document a line; empty lines are passed over, image paths start beside the file.

    Args:
        path: the file.
        on_error: what is done about a line that is no document.
        place: where to begin in a file that is not compressed, in bytes and in lines before that
            place, and how many lines to read from there; None for all.

    Raises:
        DocumentError: the file cannot be read or is cut short, or a line is no document.
    """
    offset, before, count = place
    try:
        with (
            open_arrow(path) as file,
            pa.input_stream(file, compression=CODECS.get(path.suffix)) as stream,
        ):
            if offset:
                stream.seek(offset)
            # NativeFile reads blocks but no lines; BufferedReader cuts them.
            lines = itertools.islice(io.BufferedReader(stream, 1 << 20), count)
            for number, line in enumerate(lines, start=before + 1):
                if line.strip():
                    yield from _document(line, path, number, on_error)
    except OSError as error:
        if error.errno is not None or path.suffix not in CODECS:
            raise unreadable_file_error(path, error, "a file of JSON lines") from error
        on_error(
            DocumentError(
                f"{path}: the {CODECS[path.suffix]} data is cut short or broken; expected a whole "
                "file. Copy or write the file again."
            )
        )


def _document(line: bytes, path: AnyPath, number: int, on_error: OnError) -> Iterator[Document]:
    where = f"{path}:{number}"
    try:
        record = _parse(line, where)
        if is_obelics_record(record):
            parts = interleave(record.pop(TEXTS), record.pop(IMAGES), where)
            record = {**record, "content": parts}
        document = document_from_json(record, path.parent, where)
    except DocumentError as error:
        on_error(error)
    else:
        yield document


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{where}: byte {error.start} of the line is not UTF-8; expected JSON in UTF-8. Save the "
            "file as UTF-8, or drop the line."
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DocumentError(
            f"{where}: no JSON ({what}{at}); expected one document a line. Fix the line, or drop it."
        ) from error
