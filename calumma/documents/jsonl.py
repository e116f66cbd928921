"""Reader of JSON Lines, plain or compressed with gzip or Zstandard."""

import io
import itertools
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument, OnError, drop_or_raise, unreadable_file_error
from calumma.documents.image_folder import METADATA_NAMES, unlisted_images
from calumma.documents.paths import AnyPath, open_arrow
from calumma.documents.record import document_from_record
from calumma.errors import DocumentError

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Compression codecs by the last suffix of a file's name."""


def read_jsonl(
    path: AnyPath,
    on_error: OnError = "raise",
    ignored: Collection[str] = (),
    *,
    offset: int = 0,
    first_line: int = 0,
    count: int | None = None,
) -> Iterator[Document | DroppedDocument]:
    """Read one document per line; empty lines are skipped, image paths are relative to the file.

    Args:
        path: the file.
        on_error: what to do at a line that is no document.
        ignored: columns that are not read.
        offset: bytes to skip in an uncompressed file.
        first_line: lines in the skipped bytes, for the line numbers of messages.
        count: number of lines to read; None for all.

    Raises:
        DocumentError: the file cannot be read; under "raise" also a truncated file or a bad line.
    """
    try:
        with open_arrow(path) as file, pa.input_stream(file, compression=CODECS.get(path.suffix)) as stream:
            if offset:
                stream.seek(offset)
            # NativeFile reads blocks, not lines; BufferedReader splits them.
            lines = itertools.islice(io.BufferedReader(stream, 1 << 20), count)
            for number, line in enumerate(lines, start=first_line + 1):
                if line.strip():
                    yield _parse_document(line, path, number, on_error, ignored)
        if path.name == METADATA_NAMES[0] and isinstance(path, Path) and not offset:
            yield from unlisted_images(path, on_error)
    except OSError as error:
        if error.errno is not None or path.suffix not in CODECS:
            raise unreadable_file_error(path, error, "a file of JSON lines") from error
        truncated = DocumentError(
            f"{path}: the {CODECS[path.suffix]} data is truncated or corrupt; expected a complete "
            "file. Copy or write the file again."
        )
        yield drop_or_raise(truncated, on_error)


def _parse_document(
    line: bytes, path: AnyPath, number: int, on_error: OnError, ignored: Collection[str]
) -> Document | DroppedDocument:
    where = f"{path}:{number}"
    try:
        return document_from_record(_parse_json(line, where), path.parent, where, ignored=ignored)
    except DocumentError as error:
        return drop_or_raise(error, on_error)


def _parse_json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{where}: byte {error.start} of the line is not UTF-8; expected JSON in UTF-8. Save "
            "the file as UTF-8, or remove the line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(
            f"{where}: not JSON ({json_error(error)}); expected one document per line. Fix the line, or remove it."
        ) from error


def json_error(error: ValueError | RecursionError) -> str:
    """Return the reason why a text is not JSON, with its place."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    has_lines = "\n" in error.doc.rstrip()
    return f"{error.msg}, line {error.lineno}" if has_lines else f"{error.msg} at column {error.colno}"


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON; the standard library silently keeps the last of two equal keys.

    Raises:
        ValueError: a key comes twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return made
