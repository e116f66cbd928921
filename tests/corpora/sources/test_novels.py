"""Novels are cut into chapters and their lines joined."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.novels import chapters, paragraphs, read
from tests.corpora.r_database import write_database

INDEX = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdx"
NAMES = (
    "emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility",
)  # fmt: skip


def test_a_chapter_is_a_document(tmp_path: Path) -> None:
    lines: list[str | None] = ["TITLE", "", "Chapter 1", "", "It is a", "truth.", "CHAPTER II", "x"]
    write_database(tmp_path / INDEX, dict.fromkeys(NAMES, lines))
    documents = list(read({"r-cran-janeaustenr": tmp_path}))
    assert len(documents) == 12
    assert documents[2].id == "prideprejudice-01"
    assert documents[2].text == "Chapter 1\n\nIt is a truth."
    assert documents[2].attributes == {
        "title": "Pride and Prejudice, chapter 1",
        "text": "Pride and Prejudice",
    }


def test_words_about_chapters_are_no_headings() -> None:
    assert chapters(["Chapter 1", "a chapter 2 of life", "chapter ends"]) == [
        ["Chapter 1", "a chapter 2 of life", "chapter ends"]
    ]


def test_empty_lines_part_paragraphs() -> None:
    assert paragraphs(["a", " b", "", " ", "c"]) == "a b\n\nc"
