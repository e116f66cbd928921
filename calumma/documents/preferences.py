"""Pairs of answers of which one was preferred: what `calumma compare` collects, and DPO reads.

One pair is one line of JSON, its parts written as in documents; image paths start beside the file:

    {"id": "...", "prompt": [parts], "chosen": [parts], "rejected": [parts], "source": "..."}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.documents.document import (
    Document,
    Part,
    Turn,
    document_from_json,
    document_to_json,
)
from calumma.errors import DocumentError
from calumma.files import write_text

_FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt with two answers, of which `chosen` was preferred."""

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
    """The pairs of a file, in order; empty lines are passed over.

    Raises:
        DocumentError: the file cannot be read, or a line is no pair.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DocumentError(
            f"{path}: no pairs can be read there ({error}); expected JSON lines in UTF-8. Fix the "
            "path, or export the pairs again."
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _preference(line, path, f"{path}:{number}")


def _preference(line: str, path: Path, where: str) -> Preference:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DocumentError(
            f"{where}: the line is no JSON ({error}); expected one pair a line. Export the pairs "
            "again."
        ) from error
    missing = [f for f in _FIELDS if not isinstance(record, dict) or not record.get(f)]
    if missing:
        raise DocumentError(
            f'{where}: there is no "{missing[0]}"; expected a prompt, a chosen and a rejected '
            "answer, each a list of parts. Add it, or drop the line."
        )
    parts = {
        name: document_from_json({"content": record[name]}, path.parent, f"{where}, {name}").content
        for name in _FIELDS
    }
    # A pair without a name is called after its line.
    name = str(record.get("id") or where.rpartition(":")[2])
    return Preference(id=name, source=str(record.get("source") or ""), **parts)


def write_preferences(path: Path, pairs: Iterable[Preference]) -> int:
    """Write pairs, pictures inside as base64; how many there are.

    Raises:
        OutputError: the file cannot be written.
        ImageError: a picture's file cannot be read.
    """
    lines = [json.dumps(_record(pair), ensure_ascii=False) + "\n" for pair in pairs]
    write_text(path, "".join(lines))
    return len(lines)


def _record(pair: Preference) -> dict[str, Any]:
    told = {name: getattr(pair, name) for name in _FIELDS}
    parts = {
        name: document_to_json(Document(id=pair.id, content=content))["content"]
        for name, content in told.items()
    }
    return {"id": pair.id, **parts, "source": pair.source}
