"""The two policies for documents that cannot be read."""

import pytest

from calumma.documents.error_policy import DroppedDocument, drop_or_raise
from calumma.errors import DocumentError


def test_raise_raises_the_error() -> None:
    with pytest.raises(DocumentError, match="broken"):
        drop_or_raise(DocumentError("broken"), "raise")


def test_drop_returns_the_record_of_the_dropped_document() -> None:
    dropped = drop_or_raise(DocumentError("a.jsonl:1: broken"), "drop")
    assert dropped == DroppedDocument(id="", source="", reason="unreadable", detail="a.jsonl:1: broken")
