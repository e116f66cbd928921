"""Dictionaries in the format of dictd: an index of headwords, and a text file of entries."""

import gzip
import itertools
import string
from collections.abc import Iterator

from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.documents.document import Document, Text

ENTRIES_PER_DOCUMENT = 25
"""Adjacent entries per document."""

_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


def dictionary_reader(package: str, name: str) -> CorpusReader:
    """Return a reader of `NAME.index` and `NAME.dict.dz`, in the order of the text file."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        folder = folders[package] / "usr/share/dictd"
        with gzip.open(folder / f"{name}.dict.dz") as file:
            text = file.read()
        index = (folder / f"{name}.index").read_text("utf-8", errors="replace")
        entries = iter(_entries(index, text))
        for number in itertools.count():
            page = list(itertools.islice(entries, ENTRIES_PER_DOCUMENT))
            if not page:
                break
            yield Document(
                id=f"{number:05d}",
                content=(Text("\n\n".join(page)),),
                attributes={"title": page[0].split("\n")[0][:80]},
            )

    return read


def _entries(index: str, text: bytes) -> Iterator[str]:
    """Yield the entries, each once although several headwords may refer to it."""
    ranges = set()
    for line in index.splitlines():
        word, offset, length = line.split("\t")[:3]
        if not word.startswith("00"):  # notes about the dictionary itself
            ranges.add((_number(offset), _number(length)))
    for start, size in sorted(ranges):
        entry = text[start : start + size].decode("utf-8", errors="replace").strip()
        if entry:
            yield entry


def _number(digits: str) -> int:
    """Parse a base-64 number of a dictd index, the most significant digit first.

    >>> _number("BA")
    64
    """
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS.index(digit)
    return value
