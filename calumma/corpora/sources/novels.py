"""Jane Austen's six novels, a chapter a document, out of an R package."""

from __future__ import annotations

import re
from collections.abc import Iterator

from calumma.corpora.corpus import Folders
from calumma.corpora.r_data import read_database
from calumma.documents.document import Document, Text

_INDEX = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdx"
_TITLES = {
    "sensesensibility": "Sense and Sensibility",
    "prideprejudice": "Pride and Prejudice",
    "mansfieldpark": "Mansfield Park",
    "emma": "Emma",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
}
_CHAPTER = re.compile(r"^chapter (\d+|[ivxlc]+)\b", re.IGNORECASE)


def read(folders: Folders) -> Iterator[Document]:
    """Read the novels in the order in which they were published, what stands before the first
    chapter left out."""
    novels = read_database(folders["r-cran-janeaustenr"] / _INDEX)
    for name, title in _TITLES.items():
        for number, lines in enumerate(chapters(novels[name]), start=1):
            yield Document(
                id=f"{name}-{number:02d}",
                content=(Text(paragraphs(lines)),),
                attributes={"title": f"{title}, chapter {number}", "text": title},
            )


def chapters(lines: list[str]) -> list[list[str]]:
    """Cut a novel at its chapter headings; volumes do not start the count again."""
    starts = [number for number, line in enumerate(lines) if _CHAPTER.match(line)]
    ends = [*starts[1:], len(lines)]
    return [lines[start:end] for start, end in zip(starts, ends, strict=True)]


def paragraphs(lines: list[str]) -> str:
    """Join the lines of each paragraph; an empty line parts two paragraphs.

    >>> paragraphs(["It is a truth", "universally", "", "", "acknowledged"])
    'It is a truth universally\\n\\nacknowledged'
    """
    text = "\n".join(line.strip() for line in lines)
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(block.split()) for block in blocks if block.strip())
