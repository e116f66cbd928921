"""WordNet, and dictionaries in the format of dictd: an index of headwords and a file of entries."""

import gzip
import itertools
import string
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.documents.document import Document, Text

ENTRIES_PER_DOCUMENT = 25
"""Adjacent entries per document."""

_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"

_FOLDER = "usr/share/wordnet"
_PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}

GLOSSES_PER_DOCUMENT = 40
"""About 600 words per document."""


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


def read_wordnet(folders: PackageFolders) -> Iterator[Document]:
    """Read the glosses in the order of the database: nouns, verbs, adjectives, adverbs."""
    for suffix, part_of_speech in _PARTS_OF_SPEECH.items():
        lines = _lines(folders["wordnet-base"] / _FOLDER / f"data.{suffix}", part_of_speech)
        number = 0
        while page := list(itertools.islice(lines, GLOSSES_PER_DOCUMENT)):
            yield Document(
                id=f"{part_of_speech}-{number:04d}",
                content=(Text("\n".join(page)),),
                attributes={"title": f"WordNet glosses, {part_of_speech}s", "text": part_of_speech},
            )
            number += 1


def _lines(path: Path, part_of_speech: str) -> Iterator[str]:
    for line in path.read_text("latin-1").splitlines():
        if not line.startswith("  "):  # the license at the top of the file
            yield gloss_line(line, part_of_speech)


def gloss_line(line: str, part_of_speech: str) -> str:
    """Format one line of a WordNet data file.

    >>> gloss_line("00001 03 n 02 sea_lion 0 otary 0 001 @ 000 n 0000 | an eared seal  ", "noun")
    'sea lion, otary (noun): an eared seal'
    """
    fields, gloss = line.split("|", 1)
    columns = fields.split()
    count = int(columns[3], 16)
    # Adjectives have a syntactic marker, as in "afraid(p)".
    words = [columns[4 + 2 * i].replace("_", " ").split("(")[0] for i in range(count)]
    return f"{', '.join(words)} ({part_of_speech}): {gloss.strip()}"
