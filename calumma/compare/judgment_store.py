"""Judgments in SQLite, and the items that are assigned to annotators at the moment."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calumma.compare.study import StudyItem
from calumma.errors import FileError

STORE_NAME = "judgments.sqlite"

CLAIM_SECONDS = 1800.0
"""Time for which an assigned item stays reserved for its annotator."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS judgments (
    item TEXT NOT NULL, question TEXT NOT NULL, annotator TEXT NOT NULL,
    answer TEXT NOT NULL, swapped INTEGER NOT NULL, seconds REAL NOT NULL,
    recorded_at REAL NOT NULL,
    PRIMARY KEY (item, question, annotator)
);
CREATE TABLE IF NOT EXISTS claims (
    item TEXT NOT NULL, annotator TEXT NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (item, annotator)
);
"""


@dataclass(frozen=True)
class Judgment:
    """One annotator's answers about one item."""

    item: str
    """`StudyItem.key`."""

    annotator: str

    answers: Mapping[str, str]
    """By question. Of a pair, "first" and "second" are in the study's order, not the page's."""

    swapped: bool = False
    """Whether the page showed the second answer of a pair first."""

    seconds: float = 0.0
    """Time from showing the item to the answer."""


class JudgmentStore:
    """The judgments of a study; thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Open or create the file of a study.

        Raises:
            FileError: the file is no SQLite database.
        """
        path = folder / STORE_NAME
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False)
        try:
            self._database.executescript(_SCHEMA)
            self._database.execute("PRAGMA journal_mode=WAL")
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise FileError(
                f"{path}: not a valid SQLite file ({error}); expected the judgments of this study. "
                "Restore a copy, or move it away to start again."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._database:
            yield self._database

    def record(self, judgment: Judgment) -> None:
        """Write a judgment; it replaces the annotator's earlier one of the item."""
        now = time.time()
        rows = [
            (*(judgment.item, question, judgment.annotator, answer), *(int(judgment.swapped), judgment.seconds, now))
            for question, answer in judgment.answers.items()
        ]
        key = (judgment.item, judgment.annotator)
        with self._transaction() as database:
            database.execute("DELETE FROM judgments WHERE item = ? AND annotator = ?", key)
            database.executemany("INSERT INTO judgments VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            database.execute("DELETE FROM claims WHERE item = ? AND annotator = ?", key)

    def claim(self, items: Sequence[StudyItem], annotator: str, num_annotators: int) -> StudyItem | None:
        """Assign the next item to an annotator.

        Items with the most judgments come first, so that items are completed early; otherwise the
        order is that of `items`.

        Args:
            items: all items, in the annotator's own order.
            annotator: the annotator; an item that is already assigned to them is returned again.
            num_annotators: annotators per item.

        Returns:
            None when nothing is left for this annotator.
        """
        now = time.time()
        with self._transaction() as database:
            database.execute("DELETE FROM claims WHERE since < ?", (now - CLAIM_SECONDS,))
            judged = set(_column(database, "judgments WHERE annotator = ?", annotator))
            claimed = set(_column(database, "claims WHERE annotator = ?", annotator))
            num_assigned = dict.fromkeys((item.key for item in items), 0)
            for source in ("(SELECT DISTINCT item, annotator FROM judgments)", "claims"):
                query = f"SELECT item, COUNT(*) FROM {source} GROUP BY item"
                for key, count in database.execute(query):
                    num_assigned[key] = num_assigned.get(key, 0) + count
            open_items = [item for item in items if item.key not in judged]
            reassigned = [item for item in open_items if item.key in claimed]
            free = [item for item in open_items if num_assigned[item.key] < num_annotators]
            chosen = next(iter(reassigned), None) or max(free, key=lambda item: num_assigned[item.key], default=None)
            if chosen is not None:
                row = (chosen.key, annotator, now)
                database.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", row)
            return chosen

    def judgments(self) -> list[Judgment]:
        """Return all judgments, by item and annotator."""
        columns = "item, annotator, question, answer, swapped, seconds"
        with self._lock:
            rows = self._database.execute(
                f"SELECT {columns} FROM judgments ORDER BY item, annotator, question"
            ).fetchall()
        found: dict[tuple[str, str], Judgment] = {}
        for item, annotator, question, answer, swapped, seconds in rows:
            empty = Judgment(item, annotator, {}, bool(swapped), seconds)
            known = found.setdefault((item, annotator), empty)
            found[item, annotator] = Judgment(
                item, annotator, {**known.answers, question: answer}, known.swapped, known.seconds
            )
        return list(found.values())

    def num_judged(self, annotator: str) -> int:
        """Return the number of items that an annotator has judged."""
        with self._lock:
            return len(set(_column(self._database, "judgments WHERE annotator = ?", annotator)))


def _column(database: sqlite3.Connection, rest: str, value: str) -> list[str]:
    return [row[0] for row in database.execute(f"SELECT item FROM {rest}", (value,))]
