"""The account of a source: what became of each of its columns, members and parts.

Every value is counted once: as an image, a text, an attribute or a field (id, source, license) of a
document, as not read with the reason, or as left over. A left-over value is an image or a text that
no document holds; `build-shards` refuses it unless its column is named as one to ignore.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from calumma.errors import DocumentError

ColumnUse = Literal["image", "text", "attribute", "field", "not read", "left over"]

_HEADINGS: dict[ColumnUse, str] = {
    "image": "read as images",
    "text": "read as text",
    "attribute": "read as attributes",
    "field": "read as id, source and license",
    "not read": "not read",
    "left over": "LEFT OVER",
}
_MAX_NAMES = 16
"""Columns in one line of the report."""

_MAX_COLUMNS = 256
"""Columns of an account; the values of further ones are counted together."""


@dataclass
class ColumnAccount:
    """Counts of values by use and column; reasons and kinds are part of the column's name."""

    counts: Counter[tuple[ColumnUse, str]] = field(default_factory=Counter)

    def add(self, use: ColumnUse, column: str, count: int = 1, reason: str = "") -> None:
        """Count values of a column.

        Args:
            use: what became of them.
            column: the name, with dots between the levels of a nested one.
            count: number of values.
            reason: why they were not read.
        """
        if count:
            self._add((use, f"{column} ({reason})" if reason else column), count)

    def update(self, other: "ColumnAccount") -> None:
        """Add the counts of another account, such as a document's."""
        for key, count in other.counts.items():
            self._add(key, count)

    def _add(self, key: tuple[ColumnUse, str], count: int) -> None:
        if key not in self.counts and len(self.counts) >= _MAX_COLUMNS:
            key = key[0], "other columns"
        self.counts[key] += count
        if not self.counts[key]:
            del self.counts[key]

    def total(self, use: ColumnUse) -> int:
        """Return the number of values of one use."""
        return sum(count for (found, _), count in self.counts.items() if found == use)

    def lines(self) -> Iterator[str]:
        """Yield one line for each use, with the columns and their counts."""
        for use, heading in _HEADINGS.items():
            found = [(name, count) for (each, name), count in self.counts.items() if each == use]
            found.sort(key=lambda pair: (-pair[1], pair[0]))
            names = [f"{name} {count:,}" for name, count in found[:_MAX_NAMES]]
            if len(found) > _MAX_NAMES:
                names.append(f"and {len(found) - _MAX_NAMES} more")
            if names:
                yield f"{heading}: {', '.join(names)}"

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts by use and column, sorted."""
        record: dict[str, dict[str, int]] = {}
        for (use, name), count in sorted(self.counts.items()):
            record.setdefault(use, {})[name] = count
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Mapping[str, int]]) -> "ColumnAccount":
        """Build an account from the output of `to_json`."""
        account = cls()
        for use in _HEADINGS:
            for name, count in record.get(use, {}).items():
                account._add((use, name), count)
        return account

    def require_complete(self, where: str) -> None:
        """Refuse an account with left-over images or texts.

        Args:
            where: the document, for messages.

        Raises:
            DocumentError: an image or a text is left over.
        """
        left_over = [name.rpartition(" (") for use, name in self.counts if use == "left over"]
        if left_over:
            found = ", ".join(f"{column!r} ({kind}" for column, _, kind in left_over)
            names = ",".join(column for column, _, _ in left_over)
            raise DocumentError(
                f"{where}: left over: {found}; expected every image and text in the document. Rename the columns as "
                f"docs/documents.md says, or pass --ignore-columns {names}."
            )
