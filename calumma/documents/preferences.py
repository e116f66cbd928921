"""Preference pairs for DPO, as `calumma compare` exports them.

One pair is one line of JSON, with parts as in documents; image paths are relative to the file:

    {"id": "...", "prompt": [parts], "chosen": [parts], "rejected": [parts], "source": "..."}
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.documents.document import Document, Part, Turn, document_from_json, document_to_json
from calumma.errors import DocumentError
from calumma.files import write_text

_FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt with a preferred (`chosen`) and a `rejected` answer."""

    id: str
    prompt: tuple[Part, ...]
    chosen: tuple[Part, ...]
    rejected: tuple[Part, ...]
    source: str = ""

    @property
    def conversations(self) -> tuple[Document, Document]:
        """The prompt with the chosen answer, and with the rejected one."""
        return self._answered("chosen", self.chosen), self._answered("rejected", self.rejected)

    def _answered(self, which: str, answer: tuple[Part, ...]) -> Document:
        turns = (Turn("user", self.prompt), Turn("assistant", answer))
        return Document(id=f"{self.id}/{which}", source=self.source, messages=turns)


def read_preferences(path: Path) -> Iterator[Preference]:
    """Read the pairs of a file, in order; empty lines are skipped.

    Raises:
        DocumentError: the file cannot be read, or a line is not a pair.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DocumentError(
            f"{path}: cannot be read ({error}); expected pairs as JSON lines in UTF-8. Fix the "
            "path, or export the pairs again."
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_preference(line, path, f"{path}:{number}")


def _parse_preference(line: str, path: Path, where: str) -> Preference:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DocumentError(
            f"{where}: not JSON ({error}); expected one pair per line. Export the pairs again."
        ) from error
    missing = [f for f in _FIELDS if not isinstance(record, dict) or not record.get(f)]
    if missing:
        raise DocumentError(
            f'{where}: there is no "{missing[0]}"; expected a prompt, a chosen and a rejected '
            "answer, each a list of parts. Add it, or remove the line."
        )
    parts = {
        name: document_from_json({"content": record[name]}, path.parent, f"{where}, {name}").content
        for name in _FIELDS
    }
    line_number = where.rpartition(":")[2]
    return Preference(id=str(record.get("id") or line_number), source=str(record.get("source") or ""), **parts)


def write_preferences(path: Path, pairs: Iterable[Preference]) -> int:
    """Write pairs with their images as base64, and return their number.

    Raises:
        OutputError: the file cannot be written.
        ImageError: an image file cannot be read.
    """
    lines = [json.dumps(_to_json(pair), ensure_ascii=False) + "\n" for pair in pairs]
    write_text(path, "".join(lines))
    return len(lines)


def _to_json(pair: Preference) -> dict[str, Any]:
    parts = {name: document_to_json(Document(id=pair.id, content=getattr(pair, name)))["content"] for name in _FIELDS}
    return {"id": pair.id, **parts, "source": pair.source}
