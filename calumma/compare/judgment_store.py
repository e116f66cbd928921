"""Judgments in SQLite: who said what of which item, and who is looking at it now."""

from __future__ import annotations

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
"""How long an item that somebody was given counts as taken."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS judgments (
    item TEXT NOT NULL, question TEXT NOT NULL, annotator TEXT NOT NULL,
    answer TEXT NOT NULL, swapped INTEGER NOT NULL, seconds REAL NOT NULL, told_at REAL NOT NULL,
    PRIMARY KEY (item, question, annotator)
);
CREATE TABLE IF NOT EXISTS claims (
    item TEXT NOT NULL, annotator TEXT NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (item, annotator)
);
"""


@dataclass(frozen=True)
class Judgment:
    """What one annotator said of one item."""

    item: str
    """`Item.key`."""

    annotator: str

    answers: Mapping[str, str]
    """By question. Of a pair, "first" and "second" are the study's, not the page's."""

    swapped: bool = False
    """Whether the page showed the second answer of a pair first."""

    seconds: float = 0.0
    """From showing to answering."""


class JudgmentStore:
    """The judgments of a study; several threads may use it."""

    def __init__(self, folder: Path) -> None:
        """Open or make the file of a study.

        Raises:
            FileError: it is no SQLite file.
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
                f"{path}: is no whole SQLite file ({error}); expected the judgments of this study. "
                "Put back a copy, or move it away to begin anew."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._database:
            yield self._database

    def record(self, judgment: Judgment) -> None:
        """Write a judgment; what the annotator said before of the item is replaced."""
        now = time.time()
        rows = [
            (
                *(judgment.item, question, judgment.annotator, answer),
                *(int(judgment.swapped), judgment.seconds, now),
            )
            for question, answer in judgment.answers.items()
        ]
        who = (judgment.item, judgment.annotator)
        with self._writing() as database:
            database.execute("DELETE FROM judgments WHERE item = ? AND annotator = ?", who)
            database.executemany("INSERT INTO judgments VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            database.execute("DELETE FROM claims WHERE item = ? AND annotator = ?", who)

    def claim(
        self, items: Sequence[StudyItem], annotator: str, num_annotators: int
    ) -> StudyItem | None:
        """Take the next item for an annotator.

        Items that others have begun come first, so that items become whole early; otherwise the
        order is that of `items`.

        Args:
            items: all there are, in the annotator's own order.
            annotator: who asks; the item they hold is given again.
            expected: annotators an item.

        Returns:
            None when nothing is left for this annotator.
        """
        now = time.time()
        with self._writing() as database:
            database.execute("DELETE FROM claims WHERE since < ?", (now - CLAIM_SECONDS,))
            mine = set(_column(database, "judgments WHERE annotator = ?", annotator))
            held = set(_column(database, "claims WHERE annotator = ?", annotator))
            taken = dict.fromkeys((item.key for item in items), 0)
            for source in ("(SELECT DISTINCT item, annotator FROM judgments)", "claims"):
                counted = f"SELECT item, COUNT(*) FROM {source} GROUP BY item"
                for key, count in database.execute(counted):
                    taken[key] = taken.get(key, 0) + count
            open_items = [item for item in items if item.key not in mine]
            again = [item for item in open_items if item.key in held]
            free = [item for item in open_items if taken[item.key] < num_annotators]
            chosen = next(iter(again), None) or max(
                free, key=lambda item: taken[item.key], default=None
            )
            if chosen is not None:
                row = (chosen.key, annotator, now)
                database.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", row)
            return chosen

    def judgments(self) -> list[Judgment]:
        """All judgments, in the order of item and annotator."""
        columns = "item, annotator, question, answer, swapped, seconds"
        with self._lock:
            rows = self._database.execute(
                f"SELECT {columns} FROM judgments ORDER BY item, annotator, question"
            ).fetchall()
        told: dict[tuple[str, str], Judgment] = {}
        for item, annotator, question, answer, swapped, seconds in rows:
            fresh = Judgment(item, annotator, {}, bool(swapped), seconds)
            one = told.setdefault((item, annotator), fresh)
            told[item, annotator] = Judgment(
                item, annotator, {**one.answers, question: answer}, one.swapped, one.seconds
            )
        return list(told.values())

    def num_judged(self, annotator: str) -> int:
        """How many items an annotator has judged."""
        with self._lock:
            return len(set(_column(self._database, "judgments WHERE annotator = ?", annotator)))


def _column(database: sqlite3.Connection, rest: str, value: str) -> list[str]:
    return [row[0] for row in database.execute(f"SELECT item FROM {rest}", (value,))]
