"""A helper for readers that drop documents."""

from collections.abc import Iterable

from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument


def separate(records: Iterable[Document | DroppedDocument]) -> tuple[list[Document], list[str]]:
    """Separate documents from the details of dropped ones."""
    read = list(records)
    documents = [record for record in read if isinstance(record, Document)]
    return documents, [record.detail for record in read if isinstance(record, DroppedDocument)]
