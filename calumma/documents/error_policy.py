"""What is done about a document that cannot be read: stop there, or note it and go on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from calumma.documents.paths import AnyPath
from calumma.errors import CalummaError, DocumentError

OnError = Callable[[CalummaError], None]
"""Called with each fault; raises it to stop, or returns to go on with the next document."""


@dataclass(frozen=True, kw_only=True)
class DroppedDocument:
    """A document that was left out, and why: one line of a quarantine file."""

    id: str
    """Empty where the file was too broken to say."""

    source: str

    reason: str
    """A few words that many drops share, such as "unreadable" or "image too small"."""

    detail: str
    """What was found in this document, and what was expected."""


UNREADABLE = "unreadable"
"""The reason of every document that cannot be read or encoded."""


def stop(error: CalummaError) -> None:
    """Stop at the first document that cannot be read."""
    raise error


def os_error_text(error: OSError) -> str:
    """What the system says of a file, without the path that some libraries put around it."""
    return os.strerror(error.errno) if error.errno is not None else str(error)


def unreadable_file_error(path: AnyPath, error: OSError, wanted: str) -> DocumentError:
    """What is said of a file of documents that the system does not hand out.

    It is to be raised whatever is done about documents that cannot be read: all documents in the
    file would go with it, and none of them was found to be bad.

    Args:
        path: the file.
        error: what the system said.
        expected: what the file should have been, such as "a Parquet file".
    """
    return DocumentError(
        f"{path}: cannot be read ({os_error_text(error)}); expected {wanted}. Fix the path or its "
        "permissions."
    )


class Faults:
    """Goes on, counts what was left out, and keeps the first few messages.

    >>> from calumma.errors import DocumentError
    >>> faults = Faults(keep=1)
    >>> faults(DocumentError("a.jsonl:1: broken")); faults(DocumentError("a.jsonl:2: broken"))
    >>> faults.count, faults.messages
    (2, ['a.jsonl:1: broken'])
    """

    def __init__(self, keep: int = 10) -> None:
        self.keep = keep
        self.count = 0
        self.messages: list[str] = []

    def __call__(self, error: CalummaError) -> None:
        """Take in one fault."""
        self.count += 1
        if len(self.messages) < self.keep:
            self.messages.append(str(error))
