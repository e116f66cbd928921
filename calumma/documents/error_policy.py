"""Policy for documents that cannot be read: raise the error, or drop and record the document."""

import os
from dataclasses import dataclass
from typing import Literal

from calumma.documents.paths import AnyPath
from calumma.errors import CalummaError, DocumentError

OnError = Literal["raise", "drop"]
"""What a reader does at a document that cannot be read: "raise" its error, or "drop" the document
and yield a `DroppedDocument` instead. Unreadable files and network failures always raise."""

UNREADABLE = "unreadable"
"""The reason of every document that cannot be read or encoded."""


@dataclass(frozen=True, kw_only=True)
class DroppedDocument:
    """A document that was dropped, and why: one line of a quarantine file."""

    id: str
    """Empty if the document could not be parsed far enough to find its id."""

    source: str

    reason: str
    """A short label shared by many dropped documents, such as "unreadable" or "language"."""

    detail: str
    """What was found in this document, and what was expected."""


def drop_or_raise(error: CalummaError, on_error: OnError) -> DroppedDocument:
    """Return the record of a document that cannot be read, or raise `error` under "raise"."""
    if on_error == "raise":
        raise error
    return DroppedDocument(id="", source="", reason=UNREADABLE, detail=str(error))


def os_error_text(error: OSError) -> str:
    """Return the system's description of an error, without the path that libraries add to it."""
    return os.strerror(error.errno) if error.errno is not None else str(error)


def unreadable_file_error(path: AnyPath, error: OSError, expected: str) -> DocumentError:
    """Return the error for an input file that cannot be read; it is raised under any `OnError`.

    Dropping the file would silently drop all of its documents, none of which is known to be bad.

    Args:
        path: the input file.
        error: the error of the operating system.
        expected: the expected kind of file, such as "a Parquet file".
    """
    return DocumentError(
        f"{path}: cannot be read ({os_error_text(error)}); expected {expected}. Fix the path or its permissions."
    )
