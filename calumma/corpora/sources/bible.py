"""The King James Bible, a chapter a document, out of the data file of a retrieval program.

The file has a head of 92 bytes that ends in the number of its pieces, the places of the pieces in
big-endian 32-bit numbers, and the pieces, each packed with LZW. Its text is a verse a line:
"Ge1:1 In the beginning".
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator

from calumma.corpora.corpus import Folders
from calumma.corpora.lzw import unpack
from calumma.documents.document import Document, Text

_FILE = "usr/lib/bible.data"
_COUNT_AT = 88
_VERSE = re.compile(r"^(\d?[A-Z]\w*?)(\d+):(\d+) (.*)$")
_BOOKS = {
    "Ge": "Genesis", "Exo": "Exodus", "Lev": "Leviticus", "Num": "Numbers", "Deu": "Deuteronomy",
    "Josh": "Joshua", "Jdgs": "Judges", "Ruth": "Ruth", "1Sm": "1 Samuel", "2Sm": "2 Samuel",
    "1Ki": "1 Kings", "2Ki": "2 Kings", "1Chr": "1 Chronicles", "2Chr": "2 Chronicles",
    "Ezra": "Ezra", "Neh": "Nehemiah", "Est": "Esther", "Job": "Job", "Psa": "Psalms",
    "Prv": "Proverbs", "Eccl": "Ecclesiastes", "SSol": "Song of Solomon", "Isa": "Isaiah",
    "Jer": "Jeremiah", "Lam": "Lamentations", "Eze": "Ezekiel", "Dan": "Daniel", "Hos": "Hosea",
    "Joel": "Joel", "Amos": "Amos", "Obad": "Obadiah", "Jonah": "Jonah", "Mic": "Micah",
    "Nahum": "Nahum", "Hab": "Habakkuk", "Zep": "Zephaniah", "Hag": "Haggai", "Zec": "Zechariah",
    "Mal": "Malachi", "Mat": "Matthew", "Mark": "Mark", "Luke": "Luke", "John": "John",
    "Acts": "Acts", "Rom": "Romans", "1Cor": "1 Corinthians", "2Cor": "2 Corinthians",
    "Gal": "Galatians", "Eph": "Ephesians", "Phi": "Philippians", "Col": "Colossians",
    "1Th": "1 Thessalonians", "2Th": "2 Thessalonians", "1Tim": "1 Timothy", "2Tim": "2 Timothy",
    "Titus": "Titus", "Phmn": "Philemon", "Heb": "Hebrews", "Jas": "James", "1Pet": "1 Peter",
    "2Pet": "2 Peter", "1Jn": "1 John", "2Jn": "2 John", "3Jn": "3 John", "Jude": "Jude",
    "Rev": "Revelation",
}  # fmt: skip
"""Books by the letters with which the data file begins their verses."""


def read(folders: Folders) -> Iterator[Document]:
    """Read the chapters from Genesis to the Revelation, a verse a line without its number."""
    lines = text_of((folders["bible-kjv-text"] / _FILE).read_bytes()).splitlines()
    verses = filter(None, map(_VERSE.match, lines))
    for (book, chapter), group in itertools.groupby(verses, key=lambda verse: verse.group(1, 2)):
        title = f"{_BOOKS[book]}, chapter {chapter}"
        body = "\n".join(verse[4] for verse in group)
        yield Document(
            id=f"{book}-{int(chapter):03d}",
            content=(Text(f"{title}\n\n{body}"),),
            attributes={"title": title, "text": _BOOKS[book]},
        )


def text_of(data: bytes) -> str:
    """The text that a data file holds."""
    (count,) = struct.unpack_from(">I", data, _COUNT_AT)
    starts = struct.unpack_from(f">{count}I", data, _COUNT_AT + 4)
    ends = (*starts[1:], len(data))
    pieces = (data[start:end] for start, end in zip(starts, ends, strict=True))
    return b"".join(map(unpack, pieces)).decode("latin-1")
